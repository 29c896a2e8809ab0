// Every family's table of weights says where each element of a checkpoint is, both ways.
#include "models/spec/weight_table.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <set>

#include "models/spec/family.h"
#include "models/weights/gguf_layout.h"

namespace trireme {
namespace {

constexpr char kSizes[] =
    "num_hidden_layers: 3 hidden_size: 48 num_attention_heads: 3 intermediate_size: 40 vocab_size: 31 "
    "max_position_embeddings: 16 num_experts: 3 num_experts_per_tok: 2 moe_intermediate_size: 20 "
    "shared_expert_intermediate_size: 24 n_shared_experts: 1 n_group: 1 topk_group: 1 first_k_dense_replace: 1 ";

int64_t Numel(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

ModelConfig ConfigOf(const ModelFamily& family, const std::string& fields) {
  ModelConfig config;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kSizes + fields, &config)) << fields;
  config.set_family(family.name);
  return config;
}

WeightTable TableOf(const ModelFamily& family, const std::string& fields) {
  std::vector<std::string> problems;
  const DecoderSpec spec = Specify(family, ConfigOf(family, fields), &problems);
  EXPECT_TRUE(problems.empty()) << family.name << ": " << problems[0];
  return MakeWeightTable(spec);
}

// Element (row, column) of a stored matrix or vector, whose runs are along columns when it is transposed.
int64_t StoredIndex(const WeightTable::Stored& stored, int64_t run_row, int64_t across) {
  if (stored.shape.size() == 1) return run_row;
  if (!stored.transposed) return run_row * stored.shape[1] + across;
  const int64_t ours = stored.shape[1], theirs = stored.shape[0] / stored.pieces;
  return (run_row / ours * theirs + across) * ours + run_row % ours;
}

using Values = std::vector<std::vector<int64_t>>;

// What a checkpoint would hold, by the parameters' runs. Every element must be set once.
Values Store(const WeightTable& table, const Values& parameters) {
  Values stored;
  for (const WeightTable::Stored& tensor : table.stored) stored.emplace_back(Numel(tensor.shape), -1);
  for (size_t p = 0; p < table.parameters.size(); ++p) {
    const WeightTable::Parameter& parameter = table.parameters[p];
    const int64_t columns = parameter.shape.size() == 2 ? parameter.shape[1] : 1;
    int64_t next = 0;
    for (const RowRun& run : parameter.runs) {
      EXPECT_TRUE(run.step > 1 || run.row == next) << parameter.name;
      EXPECT_EQ(run.parameter, p);
      next += run.rows;
      for (int64_t i = 0; i < run.rows * columns; ++i) {
        int64_t& out =
            stored[run.stored].at(StoredIndex(table.stored[run.stored], run.stored_row + i / columns, i % columns));
        EXPECT_EQ(out, -1) << parameter.name << " falls on what another has";
        out = parameters[p].at((run.row + i / columns * run.step) * columns + i % columns);
      }
    }
    EXPECT_EQ(next, parameter.shape[0]) << parameter.name;
  }
  for (size_t s = 0; s < stored.size(); ++s) {
    for (const int64_t value : stored[s]) EXPECT_NE(value, -1) << table.stored[s].name << " has a hole";
  }
  return stored;
}

// And back, by the stored tensors' runs.
Values Restore(const WeightTable& table, const Values& stored) {
  Values parameters;
  for (const WeightTable::Parameter& parameter : table.parameters) parameters.emplace_back(Numel(parameter.shape), -1);
  for (size_t s = 0; s < table.stored.size(); ++s) {
    int64_t next = 0;
    for (const RowRun& run : table.stored[s].runs) {
      EXPECT_EQ(run.stored_row, next) << table.stored[s].name;
      next += run.rows;
      const std::vector<int64_t>& shape = table.parameters[run.parameter].shape;
      const int64_t columns = shape.size() == 2 ? shape[1] : 1;
      for (int64_t i = 0; i < run.rows * columns; ++i)
        parameters[run.parameter].at((run.row + i / columns * run.step) * columns + i % columns) =
            stored[s].at(StoredIndex(table.stored[s], run.stored_row + i / columns, i % columns));
    }
    const WeightTable::Stored& tensor = table.stored[s];
    EXPECT_EQ(next, tensor.transposed ? tensor.shape[1] * tensor.pieces : tensor.shape[0]) << tensor.name;
  }
  return parameters;
}

constexpr const char* kVariants[] = {"",
                                     "tie_word_embeddings: true",
                                     "attention_bias: true mlp_bias: true",
                                     "partial_rotary_factor: 0.5 use_qk_norm: true",
                                     "attention_bias: false partial_rotary_factor: 1 use_parallel_residual: true",
                                     "new_decoder_architecture: true num_ln_in_parallel_attn: 2",
                                     "parallel_attn: false attention_bias: true"};

// Each element of the parameters is one of the stored tensors', and the other way round.
void ExpectBijection(const WeightTable& table) {
  std::set<std::string> names, stored_names;
  Values numbered;
  int64_t next = 0;
  for (const WeightTable::Parameter& parameter : table.parameters) {
    EXPECT_TRUE(names.insert(parameter.name).second) << parameter.name;
    numbered.emplace_back();
    for (int64_t i = 0; i < Numel(parameter.shape); ++i) numbered.back().push_back(next++);
  }
  for (const WeightTable::Stored& stored : table.stored) {
    EXPECT_TRUE(stored_names.insert(stored.name).second) << stored.name;
    EXPECT_EQ(stored.name.find('*'), std::string::npos) << stored.name;
    EXPECT_EQ(stored.name.find('|'), std::string::npos) << stored.name;
  }
  EXPECT_EQ(stored_names.count(table.embedding), 1u);
  EXPECT_EQ(Restore(table, Store(table, numbered)), numbered);
}

TEST(WeightTable, EveryFamilysIsABijection) {
  for (const ModelFamily& family : BuiltInFamilies()) {
    for (const char* variant : kVariants) {
      SCOPED_TRACE(absl::StrCat(family.name, " ", variant));
      const WeightTable table = TableOf(family, variant);
      ExpectBijection(table);
      const bool has_head = std::any_of(table.stored.begin(), table.stored.end(),
                                        [&](const auto& stored) { return stored.name == table.head; });
      EXPECT_EQ(has_head, absl::string_view(variant) != "tie_word_embeddings: true");
    }
  }
}

TEST(WeightTable, LlamaCppsOfEveryFamilyIsABijection) {
  int architectures = 0;
  for (const ModelFamily& family : BuiltInFamilies()) {
    for (const char* variant : kVariants) {
      SCOPED_TRACE(absl::StrCat(family.name, " ", variant));
      const ModelConfig config = ConfigOf(family, variant);
      const GgufArchitecture* architecture = GgufArchitectureOf(config);
      if (architecture == nullptr) continue;
      if (architecture->latent && config.attention_bias()) continue;  // has no name for these
      std::vector<std::string> problems;
      const GgufLayout layout = GgufLayoutOf(*architecture, Specify(family, config, &problems));
      ExpectBijection(layout.table);
      for (const WeightTable::Stored& stored : layout.table.stored)
        EXPECT_NE(stored.name.compare(0, 6, "model."), 0) << stored.name << " has no name of llama.cpp's";
      ++architectures;
    }
  }
  EXPECT_GT(architectures, 30 * static_cast<int>(std::size(kVariants)));
}

TEST(WeightTable, RulesNameNothingThatDoesNotExist) {
  for (const ModelFamily& family : BuiltInFamilies()) {
    std::vector<WeightTable> tables;
    for (const char* variant : kVariants) tables.push_back(TableOf(family, variant));
    for (const WeightRule& rule : family.weights.rules) {
      const std::string name = rule.name, begin = name.substr(0, name.find('*'));
      const std::string end = name.find('*') == std::string::npos ? "" : name.substr(name.find('*') + 1);
      bool used = false;
      for (const WeightTable& table : tables) {
        for (const WeightTable::Parameter& p : table.parameters) {
          used = used || (p.name.compare(0, begin.size(), begin) == 0 && p.name.size() >= end.size() &&
                          p.name.compare(p.name.size() - end.size(), end.size(), end) == 0);
        }
      }
      EXPECT_TRUE(used) << family.name << ": " << rule.name;
    }
  }
}

TEST(WeightTable, RotaryOrderMakesEveryPairHalfAHeadApart) {
  for (const auto& [head_dim, rotary_dim] :
       {std::pair(16, 4), std::pair(16, 16), std::pair(10, 2), std::pair(64, 24)}) {
    std::vector<int64_t> theirs(static_cast<size_t>(head_dim), -1);
    for (const RowRun& run : RotaryOrder(head_dim, rotary_dim)) {
      for (int64_t i = 0; i < run.rows; ++i) theirs[static_cast<size_t>(run.row + i)] = run.stored_row + i;
    }
    EXPECT_EQ(std::set<int64_t>(theirs.begin(), theirs.end()).size(), static_cast<size_t>(head_dim));
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      const int64_t a = theirs[static_cast<size_t>(i)], b = theirs[static_cast<size_t>(i + head_dim / 2)];
      if (i < rotary_dim / 2) {
        EXPECT_EQ(a, i);
        EXPECT_EQ(b, i + rotary_dim / 2) << "a pair that turns";
      } else {
        EXPECT_GE(a, rotary_dim) << "one that stands still";
        EXPECT_GE(b, rotary_dim);
      }
    }
  }
}

}  // namespace
}  // namespace trireme
