#include "models/spec/weight_table.h"

#include <absl/strings/match.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <map>

#include "models/spec/parameters.h"

namespace trireme {
namespace {

constexpr char kLayers[] = "model.layers.";

// The name with its layer's number as *, and the number.
std::pair<std::string, std::string> Generalize(const std::string& name) {
  if (!absl::StartsWith(name, kLayers)) return {name, ""};
  const size_t begin = sizeof(kLayers) - 1, end = name.find('.', begin);
  return {absl::StrCat(kLayers, "*", name.substr(end)), name.substr(begin, end - begin)};
}

const WeightRule* FindRule(const std::vector<WeightRule>& rules, const std::string& name) {
  for (const WeightRule& rule : rules) {
    if (name == rule.name) return &rule;
  }
  return nullptr;
}

// Where the rows of a parameter are among those of `parts` like it.
std::vector<RowRun> RunsOf(const WeightRule& rule, const DecoderSpec& spec, size_t parameter, const ParameterSpec& of) {
  const int64_t rows = of.shape[0];
  std::vector<RowRun> runs;
  const auto add = [&](int64_t row, int64_t stored_row, int64_t count) {
    if (count == 0) return;
    RowRun* last = runs.empty() ? nullptr : &runs.back();
    if (last != nullptr && last->row + last->rows == row && last->stored_row + last->rows == stored_row) {
      last->rows += count;
    } else {
      runs.push_back({parameter, row, stored_row, count});
    }
  };
  if (!rule.per_head && !rule.rotary_order) {
    add(0, rule.part * rows, rows);
    return runs;
  }
  const int64_t heads = of.heads, d = rows / heads;
  const std::vector<RowRun> order = rule.rotary_order && spec.reordered_rotary_dims > 0
                                        ? RotaryOrder(d, spec.reordered_rotary_dims)
                                        : std::vector<RowRun>{{0, 0, 0, d}};
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t begin = rule.per_head ? (head * rule.parts + rule.part) * d : rule.part * rows + head * d;
    for (const RowRun& run : order) add(head * d + run.row, begin + run.stored_row, run.rows);
  }
  return runs;
}

}  // namespace

WeightNames LlamaWeightNames() { return {.rules = {}, .optional_prefix = "", .ignored = {".rotary_emb.inv_freq"}}; }

std::vector<RowRun> RotaryOrder(int64_t head_dim, int64_t rotary_dim) {
  const int64_t turned = rotary_dim / 2, still = head_dim / 2 - turned;
  return {{0, 0, 0, turned},
          {0, turned, rotary_dim, still},
          {0, head_dim / 2, turned, turned},
          {0, head_dim / 2 + turned, rotary_dim + still, still}};
}

WeightTable MakeWeightTable(const WeightNames& names, const DecoderSpec& spec) {
  WeightTable table;
  table.optional_prefix = names.optional_prefix;
  table.ignored = names.ignored;
  const auto stored_name = [&](const std::string& name) {
    const WeightRule* rule = FindRule(names.rules, name);
    return rule == nullptr ? name : std::string(rule->stored);
  };
  table.embedding = stored_name("model.embed_tokens.weight");
  table.head = stored_name("lm_head.weight");

  std::map<std::string, size_t> index;
  for (const ParameterSpec& spec_of : DecoderParameters(spec)) {
    const auto [general, layer] = Generalize(spec_of.name);
    const WeightRule same = {general.c_str(), general.c_str()};
    const WeightRule* rule = names.rules.empty() ? &same : FindRule(names.rules, general);
    TRIREME_CHECK(rule != nullptr, "the family's weight names have none for ", spec_of.name);
    const std::string name = absl::StrReplaceAll(rule->stored, {{"*", layer}});

    WeightTable::Parameter parameter;
    parameter.name = spec_of.name;
    parameter.shape = spec_of.shape;
    const auto [found, added] = index.try_emplace(name, table.stored.size());
    parameter.stored = found->second;
    parameter.runs = RunsOf(*rule, spec, table.parameters.size(), spec_of);
    if (added) {
      WeightTable::Stored stored;
      stored.name = name;
      stored.shape = spec_of.shape;
      stored.transposed = rule->transposed && spec_of.shape.size() == 2;
      stored.shape[0] *= rule->parts;
      if (stored.transposed) std::reverse(stored.shape.begin(), stored.shape.end());
      table.stored.push_back(std::move(stored));
    }
    WeightTable::Stored& stored = table.stored[parameter.stored];
    stored.runs.insert(stored.runs.end(), parameter.runs.begin(), parameter.runs.end());
    table.parameters.push_back(std::move(parameter));
  }
  for (WeightTable::Stored& stored : table.stored) {
    std::sort(stored.runs.begin(), stored.runs.end(),
              [](const RowRun& a, const RowRun& b) { return a.stored_row < b.stored_row; });
  }
  return table;
}

}  // namespace trireme
