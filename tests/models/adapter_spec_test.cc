// Which modules an adapter config names, and what is said of names that fit nothing.
#include "models/spec/adapter_spec.h"

#include <absl/strings/str_cat.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "launch/base/file.h"
#include "models/formats/hf/peft.h"

namespace trireme {
namespace {

const std::vector<std::string> kLinears = {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
                                           "lm_head"};
const std::vector<std::string> kWhole = {"model.embed_tokens", "lm_head"};

struct Resolved {
  std::vector<std::string> modules, saved, problems;
};

Resolved Resolve(const std::string& text, std::vector<std::string> linears = kLinears,
                 const std::vector<std::string>& whole = kWhole) {
  AdapterConfig config;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &config)) << text;
  Resolved resolved;
  const AdapterSpec spec = ResolveAdapter(config, linears, {}, whole, &resolved.problems);
  for (const auto& [module, adapter] : spec.modules) resolved.modules.push_back(module);
  resolved.saved.assign(spec.saved_modules.begin(), spec.saved_modules.end());
  return resolved;
}

using Names = std::vector<std::string>;

TEST(AdapterSpecTest, AllLinearIsAllButTheHead) {
  const Names blocks = {"model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"};
  EXPECT_EQ(Resolve("r: 4").modules, blocks);
  EXPECT_EQ(Resolve("r: 4 target_modules: 'all-linear'").modules, blocks);
}

TEST(AdapterSpecTest, TheHeadIsAdaptedWhereItIsNamed) {
  const Resolved named = Resolve("r: 4 target_modules: ['q_proj', 'lm_head']");
  EXPECT_EQ(named.modules, (Names{"lm_head", "model.layers.0.self_attn.q_proj"}));
  EXPECT_EQ(named.problems, Names{});
  EXPECT_EQ(Resolve("r: 4 target_modules_regex: '.*(head|q_proj)'").modules, named.modules);
  EXPECT_EQ(Resolve("r: 4 modules_to_save: 'lm_head'").saved, Names{"lm_head"});
}

TEST(AdapterSpecTest, SaysWhatDoesNotFit) {
  const auto expect = [](const Resolved& resolved, const std::string& message) {
    ASSERT_EQ(resolved.problems.size(), 1u) << message;
    EXPECT_NE(resolved.problems[0].find(message), std::string::npos) << resolved.problems[0];
  };
  expect(Resolve("r: 4 target_modules: 'q_prj'"), "no linear layer is called \"q_prj\"");
  expect(Resolve("r: 4 target_modules: 'embed_tokens'"), "name it in adapter.modules_to_save to train it whole");
  expect(Resolve("r: 4 target_modules: 'lm_head'", {"model.layers.0.self_attn.q_proj"}, {"model.embed_tokens"}),
         "is the embedding here (tied weights)");
  expect(Resolve("r: 4 target_modules: 'lm_head' modules_to_save: 'lm_head'"), "is among adapter.target_modules too");
  expect(Resolve("r: 4 target_modules: 'lm_head' use_dora: true"), "adapter.use_dora: DoRA and PiSSA know no adapter");
  expect(Resolve("r: 4 target_modules: 'lm_head' init_lora_weights: PISSA"), "adapter.init_lora_weights: DoRA and");
  expect(Resolve("r: 0"), "adapter.r: is 0; give a rank from 1");
  expect(Resolve("r: 4 target_modules: 'q_proj' exclude_modules: 'q_proj'"), "none of the model's layers is left");
  EXPECT_EQ(Resolve("r: 4 target_modules: 'q_proj' exclude_modules: 'q_proj' modules_to_save: 'lm_head'").problems,
            Names{});
}

TEST(AdapterSpecTest, AnAdapterThatExistsMayNameMore) {
  const std::string more =
      "r: 4 target_modules: ['q_proj', 'c_attn'] exclude_modules: 'k_proj' rank_pattern { key: 'c_attn' value: 2 }";
  EXPECT_EQ(Resolve(more).problems.size(), 3u);
  const Resolved existing = Resolve(more + " from: 'DIR'");
  EXPECT_EQ(existing.problems, Names{});
  EXPECT_EQ(existing.modules, Names{"model.layers.0.self_attn.q_proj"});
  AdapterConfig config;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      "r: 4 lora_alpha: 8 target_modules_regex: '.*proj' rank_pattern { key: 'q_.*' value: 2 } from: 'DIR'", &config));
  Names problems;
  AdapterConfig exact = ExactConfig(config, ResolveAdapter(config, kLinears, {}, kWhole, &problems));
  exact.clear_from();
  const AdapterSpec again = ResolveAdapter(exact, kLinears, {}, kWhole, &problems);
  EXPECT_EQ(problems, Names{});
  EXPECT_EQ(again.modules.at("model.layers.0.self_attn.q_proj").rank, 2);
  EXPECT_EQ(again.modules.at("model.layers.0.mlp.down_proj").rank, 4);
}

// The modules that PEFT 0.21's check_target_module_exists() chooses.
TEST(AdapterSpecTest, PeftMayChooseLayersAndExcludeByExpression) {
  const Names modules = {"model.layers.0.self_attn.q_proj",  "model.layers.0.mlp.down_proj",
                         "model.layers.1.self_attn.q_proj",  "model.layers.1.mlp.experts.0.down_proj",
                         "model.layers.10.self_attn.q_proj", "lm_head"};
  const auto chosen = [&](const std::string& settings) -> Names {
    std::string pattern = (std::filesystem::temp_directory_path() / "trireme-test-XXXXXX").string();
    const std::string folder = mkdtemp(pattern.data());
    EXPECT_TRUE(WriteFileAtomically(folder + "/adapter_config.json",
                                    absl::StrCat(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, )", settings, "}"))
                    .ok());
    const absl::StatusOr<PeftConfig> config = ReadPeftConfig(folder);
    std::filesystem::remove_all(folder);
    if (!config.ok()) return {std::string(config.status().message())};
    AdapterConfig adapter = config->adapter;
    adapter.set_from("DIR");
    Names problems, found;
    for (const auto& [module, unused] : ResolveAdapter(adapter, modules, {}, kWhole, &problems).modules)
      found.push_back(module);
    EXPECT_EQ(problems, Names{}) << settings;
    return found;
  };
  EXPECT_EQ(chosen(R"("target_modules": ["q_proj"], "layers_to_transform": [1, 10])"), (Names{modules[2], modules[4]}));
  EXPECT_EQ(chosen(R"("target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers")"),
            Names{modules[0]});
  EXPECT_EQ(chosen(R"("target_modules": ["down_proj"], "layers_to_transform": [0])"), Names{modules[1]})
      << "the first number counts";
  EXPECT_EQ(chosen(R"("target_modules": ["down_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"])"),
            Names{modules[3]});
  EXPECT_EQ(chosen(R"("target_modules": ["lm_head", "q_proj"], "layers_to_transform": [1])"),
            (Names{"lm_head", modules[2]}))
      << "a whole name is taken whatever its layer";
  EXPECT_NE(chosen(R"("target_modules": "all-linear", "layers_to_transform": [1])")[0].find("which PEFT refuses"),
            std::string::npos);
  EXPECT_EQ(chosen(R"("target_modules": ["q_proj", "down_proj"], "exclude_modules": ".*\\.0\\..*")"),
            (Names{modules[2], modules[4]}));
  EXPECT_EQ(chosen(R"("target_modules": ".*_proj", "exclude_modules": "q_proj")").size(), 5u)
      << "an expression must match all of the name";
  EXPECT_EQ(chosen(R"("target_modules": ["q_proj"], "layers_to_transform": [], "layers_pattern": null)").size(), 3u);
  EXPECT_NE(chosen(R"("target_modules": ["q_proj"], "layers_to_transform": "1")")[0].find("layers_to_transform"),
            std::string::npos);
}

}  // namespace
}  // namespace trireme
