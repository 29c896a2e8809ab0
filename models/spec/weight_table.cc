#include "models/spec/weight_table.h"

#include <absl/strings/match.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <map>
#include <numeric>

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

const WeightRule* FindRule(const std::vector<WeightRule>& rules, const DecoderSpec& spec, const std::string& name) {
  for (const WeightRule& rule : rules) {
    if (name == rule.name && (rule.applies == nullptr || rule.applies(spec))) return &rule;
  }
  return nullptr;
}

const WeightNames& NamesOf(const DecoderSpec& spec) {
  static const WeightNames ours;
  return spec.names != nullptr ? *spec.names : ours;
}

// A parameter and where it is stored.
struct Kept {
  ParameterSpec spec;
  WeightRule rule;
  std::string stored;  // with the layer's number
};

// The parts of one stored tensor: rows of each, and how many groups they are cut into.
struct Parts {
  std::vector<int64_t> rows, heads;
  int64_t groups = 1;
};

// Adjacent runs become one.
class Runs {
 public:
  explicit Runs(size_t parameter) : parameter_(parameter) {}
  void Add(int64_t row, size_t stored, int64_t stored_row, int64_t count, int64_t step = 1) {
    if (count == 0) return;
    // The run before of rows that are taken in turn is as many back.
    const auto recent = runs_.end() - std::min<int64_t>(step, static_cast<int64_t>(runs_.size()));
    const auto before = std::find_if(recent, runs_.end(), [&](const RowRun& run) {
      return run.stored == stored && run.step == step && run.row + run.rows * step == row &&
             run.stored_row + run.rows == stored_row;
    });
    if (before != runs_.end()) {
      before->rows += count;
    } else {
      runs_.push_back({parameter_, row, stored_row, count, stored, step});
    }
  }
  std::vector<RowRun> Take() { return std::move(runs_); }

 private:
  size_t parameter_;
  std::vector<RowRun> runs_;
};

// Where the rows of a parameter are in the tensor that all its parts make up.
std::vector<RowRun> RunsOf(const Kept& kept, const DecoderSpec& spec, const Parts& parts, size_t parameter,
                           size_t stored) {
  const WeightRule& rule = kept.rule;
  const int64_t rows = kept.spec.shape[0];
  int64_t before = 0, all = 0;
  for (int part = 0; part < rule.parts; ++part) {
    if (part < rule.part) before += parts.rows[static_cast<size_t>(part)] / parts.groups;
    all += parts.rows[static_cast<size_t>(part)] / parts.groups;
  }
  Runs runs(parameter);
  const int64_t own = rows / parts.groups;  // of a group
  const int64_t head_dim = kept.spec.heads > 0 ? rows / kept.spec.heads : own;
  const std::vector<RowRun> order = rule.rotary_order && spec.reordered_rotary_dims > 0
                                        ? RotaryOrder(head_dim, spec.reordered_rotary_dims)
                                        : std::vector<RowRun>{{0, 0, 0, head_dim}};
  for (int64_t group = 0; group < parts.groups; ++group) {
    for (int64_t head = 0; head < own / head_dim; ++head) {
      for (const RowRun& run : order) {
        runs.Add(group * own + head * head_dim + run.row, stored,
                 group * all + before + head * head_dim + run.stored_row, run.rows);
      }
    }
  }
  return runs.Take();
}

std::vector<Kept> KeptParameters(const DecoderSpec& spec, const WeightNames& names) {
  std::vector<Kept> all;
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    const auto [general, layer] = Generalize(parameter.name);
    const WeightRule* rule = FindRule(names.rules, spec, general);
    Kept kept = {parameter, {}, parameter.name};
    if (rule != nullptr) {
      kept.rule = *rule;
      kept.stored = absl::StrReplaceAll(rule->stored, {{"*", layer}});
    } else {
      kept.rule.name = kept.rule.stored = "";
    }
    all.push_back(std::move(kept));
  }
  return all;
}

std::map<std::string, Parts> PartsByTensor(const std::vector<Kept>& all) {
  std::map<std::string, Parts> parts;
  for (const Kept& kept : all) {
    Parts& own = parts[kept.stored];
    own.rows.resize(static_cast<size_t>(kept.rule.parts));
    own.heads.resize(own.rows.size());
    own.rows[static_cast<size_t>(kept.rule.part)] = kept.spec.shape[0];
    own.heads[static_cast<size_t>(kept.rule.part)] = kept.spec.heads;
    if (kept.rule.per_group) own.groups = std::max<int64_t>(1, *std::min_element(own.heads.begin(), own.heads.end()));
  }
  return parts;
}

}  // namespace

std::vector<WeightRule> Fused(const char* stored, const std::vector<const char*>& names) {
  std::vector<WeightRule> rules;
  for (const char* name : names) {
    rules.push_back({.name = name,
                     .stored = stored,
                     .part = static_cast<int>(rules.size()),
                     .parts = static_cast<int>(names.size())});
  }
  return rules;
}

std::vector<WeightRule> FusedGateUp() {
  return Fused("model.layers.*.mlp.gate_up_proj.weight",
               {"model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"});
}

std::vector<RowRun> RotaryOrder(int64_t head_dim, int64_t rotary_dim) {
  const int64_t turned = rotary_dim / 2, still = head_dim / 2 - turned;
  return {{0, 0, 0, turned},
          {0, turned, rotary_dim, still},
          {0, head_dim / 2, turned, turned},
          {0, head_dim / 2 + turned, rotary_dim + still, still}};
}

std::string StoredModule(const DecoderSpec& spec, const std::string& parameter) {
  const auto [general, layer] = Generalize(parameter);
  const WeightRule* rule = FindRule(NamesOf(spec).rules, spec, general);
  const std::string name = rule == nullptr ? parameter : absl::StrReplaceAll(rule->stored, {{"*", layer}});
  return name.substr(0, name.rfind('.'));
}

std::string ExpertModule(const DecoderSpec& spec, const std::string& parameter) {
  const auto [general, layer] = Generalize(parameter);
  const WeightNames& names = NamesOf(spec);
  std::vector<const std::vector<WeightRule>*> layouts = {&names.rules};
  for (const std::vector<WeightRule>& other : names.also) layouts.push_back(&other);
  // The layout with all experts in one tensor that has no ending.
  for (const std::vector<WeightRule>* rules : layouts) {
    const WeightRule* rule = FindRule(*rules, spec, general);
    if (rule != nullptr && absl::EndsWith(rule->stored, "_proj"))
      return absl::StrReplaceAll(rule->stored, {{"*", layer}});
  }
  return parameter.substr(0, parameter.rfind('.'));
}

WeightTable MakeWeightTable(const DecoderSpec& spec) { return MakeWeightTable(spec, NamesOf(spec)); }

WeightTable MakeWeightTable(const DecoderSpec& spec, const WeightNames& names) {
  WeightTable table;
  table.optional_prefix = names.optional_prefix;
  table.ignored = names.ignored;
  const auto stored_name = [&](const std::string& name) {
    const WeightRule* rule = FindRule(names.rules, spec, name);
    return rule == nullptr ? name : std::string(rule->stored);
  };
  table.embedding = stored_name("model.embed_tokens.weight");
  table.head = stored_name("lm_head.weight");

  const std::vector<Kept> all = KeptParameters(spec, names);
  const std::map<std::string, Parts> parts_of = PartsByTensor(all);
  std::map<std::string, size_t> index;
  // The place of a stored tensor, which is added if it is new.
  const auto place = [&](const std::string& name, const Kept& kept, int64_t rows, bool transposed) {
    const auto [found, added] = index.try_emplace(name, table.stored.size());
    if (!added) return found->second;
    WeightTable::Stored stored;
    stored.name = name;
    stored.shape = kept.spec.shape;
    stored.shape[0] = rows;
    stored.transposed = transposed && stored.shape.size() == 2;
    stored.exact = kept.spec.balanced;
    if (kept.rule.by_heads) {
      stored.label = {kept.spec.heads, rows / kept.spec.heads};
      if (stored.shape.size() == 2) stored.label.push_back(stored.shape[1]);
      if (stored.transposed) {
        stored.pieces = kept.spec.heads;
        std::swap(stored.label[1], stored.label[2]);
        stored.shape = {stored.pieces * stored.label[1], stored.label[2]};
      }
    } else {
      if (stored.transposed) std::reverse(stored.shape.begin(), stored.shape.end());
      stored.label = stored.shape;
    }
    if (kept.rule.scalar) stored.label.clear();
    table.stored.push_back(std::move(stored));
    return found->second;
  };
  for (const Kept& kept : all) {
    WeightTable::Parameter parameter;
    parameter.name = kept.spec.name;
    parameter.shape = kept.spec.shape;
    parameter.linear = !kept.spec.expert && !kept.spec.wide;
    const size_t number = table.parameters.size();
    const Parts& parts = parts_of.at(kept.stored);
    const bool apart = absl::StrContains(kept.stored, '#');
    if (apart || absl::StrContains(kept.stored, '|')) {
      const std::vector<std::string> names_of_piece = absl::StrSplit(kept.stored, '|');
      const int64_t pieces = kept.spec.heads, parts_of_piece = static_cast<int64_t>(names_of_piece.size());
      const int64_t rows_of_piece = kept.spec.shape[0] / pieces;
      const bool in_turn = kept.rule.in_turn, turned = kept.rule.turned_rows != nullptr;
      Runs runs(number);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        int64_t row = piece * rows_of_piece;
        for (int64_t part = 0; part < parts_of_piece; ++part) {
          const std::string name =
              absl::StrReplaceAll(names_of_piece[static_cast<size_t>(part)], {{"#", absl::StrCat(piece)}});
          int64_t rows = rows_of_piece / parts_of_piece;
          if (turned) rows = part == 0 ? kept.rule.turned_rows(spec) : rows_of_piece - kept.rule.turned_rows(spec);
          const bool transposed = turned ? part == 0 : kept.rule.transposed;
          const size_t stored = place(name, kept, apart ? rows : rows * pieces, transposed);
          runs.Add(row, stored, apart ? 0 : piece * rows, rows, in_turn ? parts_of_piece : 1);
          row += in_turn ? 1 : rows;
        }
      }
      parameter.runs = runs.Take();
    } else {
      const int64_t rows = std::accumulate(parts.rows.begin(), parts.rows.end(), int64_t{0});
      parameter.runs = RunsOf(kept, spec, parts, number, place(kept.stored, kept, rows, kept.rule.transposed));
    }
    for (const RowRun& run : parameter.runs) table.stored[run.stored].runs.push_back(run);
    table.parameters.push_back(std::move(parameter));
  }
  for (WeightTable::Stored& stored : table.stored) {
    std::sort(stored.runs.begin(), stored.runs.end(),
              [](const RowRun& a, const RowRun& b) { return a.stored_row < b.stored_row; });
  }
  return table;
}

}  // namespace trireme
