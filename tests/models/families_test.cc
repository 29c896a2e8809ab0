// The records of all families: what they say of config.json can be read, written and survives strange values.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "models/formats/hf/hf_config.h"
#include "models/spec/family.h"
#include "models/spec/weight_table.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

TEST(Families, RecordsNameFieldsThatExist) {
  for (const ModelFamily& family : BuiltInFamilies()) {
    EXPECT_FALSE(family.hf_types.empty()) << family.name;
    for (const HfModelType& type : family.hf_types) {
      EXPECT_EQ(type.family, family.name);
      for (const HfKey& key : type.keys) {
        const std::string field = key.field != nullptr ? key.field : key.key;
        EXPECT_NE(ModelConfig::descriptor()->FindFieldByName(field), nullptr) << family.name << ": " << field;
      }
    }
  }
}

ModelConfig Tiny(const ModelFamily& family) {
  ModelConfig config;
  config.set_family(family.name);
  config.set_num_hidden_layers(4);
  config.set_hidden_size(64);
  config.set_num_attention_heads(4);
  config.set_intermediate_size(256);
  config.set_vocab_size(100);
  config.set_max_position_embeddings(128);
  config.set_num_experts(4);
  config.set_num_experts_per_tok(2);
  config.set_n_group(1);
  config.set_topk_group(1);
  return config;
}

// A model of our own, most of whose fields are open, is what its exported config.json says it is.
TEST(Families, WriteWhatTheyRead) {
  const HfModelTypes types = HfTypesOf(BuiltInFamilies());
  for (const ModelFamily& family : BuiltInFamilies()) {
    SCOPED_TRACE(family.name);
    const std::string text = WriteHfConfig(Tiny(family), *HfModelTypeOf(types, Tiny(family)), {}, "float32");
    const absl::StatusOr<HfConfig> read = ParseHfConfig(text, "config.json", types);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(WriteHfConfig(read->model, *HfModelTypeOf(types, read->model), {}, "float32"), text);
    std::vector<std::string> problems;
    const DecoderSpec ours = Specify(family, Tiny(family), &problems), theirs = Specify(family, read->model, &problems);
    ASSERT_TRUE(problems.empty()) << problems[0];
    EXPECT_EQ(ours.attentions(), theirs.attentions());
    EXPECT_EQ(ours.BlocksForwardFlopsPerToken(64), theirs.BlocksForwardFlopsPerToken(64));
    const WeightTable a = MakeWeightTable(ours), b = MakeWeightTable(theirs);
    ASSERT_EQ(a.stored.size(), b.stored.size());
    for (size_t i = 0; i < a.stored.size(); ++i) {
      EXPECT_EQ(a.stored[i].name, b.stored[i].name);
      EXPECT_EQ(a.stored[i].shape, b.stored[i].shape);
    }
  }
}

// Whatever stands in a file: a model, or a sentence that says what is wrong.
TEST(Families, StrangeValuesAreSurvived) {
  const HfModelTypes types = HfTypesOf(BuiltInFamilies());
  const Json values[] = {nullptr,       true, -1, 0, 1e300, 2147483647, "x", Json::array(), Json::array({1, "x"}),
                         Json::object()};
  for (const ModelFamily& family : BuiltInFamilies()) {
    const Json file = Json::parse(WriteHfConfig(Tiny(family), *HfModelTypeOf(types, Tiny(family)), {}, "float32"));
    for (const auto& [key, unused] : file.items()) {
      for (const Json& value : values) {
        // A list of that many layers is what is asked for, but takes its time.
        if (value == 2147483647 && key.find("layer") != std::string::npos) continue;
        Json changed = file;
        changed[key] = value;
        const absl::StatusOr<HfConfig> read = ParseHfConfig(changed.dump(), "config.json", types);
        if (!read.ok()) continue;
        std::vector<std::string> problems;
        for (const ModelFamily& other : BuiltInFamilies()) {
          if (other.name == read->model.family()) Specify(other, read->model, &problems);
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme
