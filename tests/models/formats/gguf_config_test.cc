// Keys of GGUF files as models and back, files that do not say what a model needs, models that no file can say.
#include "models/formats/gguf/gguf_config.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "models/formats/gguf/gguf_fields.h"

namespace trireme {
namespace {

constexpr char kSizes[] =
    "num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 head_dim: 16 "
    "intermediate_size: 96 vocab_size: 50 max_position_embeddings: 128 rope_theta: 5e5 rms_norm_eps: 1e-5 ";

ModelConfig Model(const std::string& fields = "family: 'llama'") {
  ModelConfig model;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kSizes, &model));
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(fields, &model)) << fields;
  return model;
}

ModelConfig Of(const char* family) {
  static const std::map<std::string, std::string> more = {
      {"gemma2",
       "sliding_window: 24 layer_types: ['sliding_attention', 'full_attention'] attn_logit_softcapping: 50 "
       "final_logit_softcapping: 30 tie_word_embeddings: true"},
      {"gemma3_text", "sliding_window: 24 rope_local_base_freq: 1e4 tie_word_embeddings: true"},
      {"cohere2", "sliding_window: 24 layer_types: ['full_attention', 'sliding_attention'] tie_word_embeddings: true"},
      {"qwen3_moe", "num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 32 norm_topk_prob: true"},
      {"mixtral", "num_experts: 4 num_experts_per_tok: 2"},
      {"gpt_oss",
       "num_experts: 4 num_experts_per_tok: 2 attention_bias: true sliding_window: 24 "
       "layer_types: ['sliding_attention', 'full_attention']"},
      {"deepseek_v3",
       "num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 32 n_shared_experts: 1 norm_topk_prob: true "
       "first_k_dense_replace: 1 q_lora_rank: 20 kv_lora_rank: 24 qk_nope_head_dim: 10 qk_rope_head_dim: 16 "
       "v_head_dim: 8 num_key_value_heads: 4 rms_norm_eps: 1e-6 partial_rotary_factor: 1 "
       "rope_scaling { rope_type: YARN factor: 4 original_max_position_embeddings: 32 mscale: 0.707 "
       "mscale_all_dim: 0.707 }"}};
  const auto found = more.find(family);
  return Model(absl::StrCat("family: '", family, "' ", found == more.end() ? "" : found->second));
}

struct Draft {
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;
  GgufFactors factors;

  GgufHeader header() const { return GgufHeader("x.gguf", metadata, tensors); }
  absl::StatusOr<GgufModel> Read(const RopeScaling* known = nullptr) const {
    const GgufVectorReader read = [this](const GgufTensor& tensor) -> absl::StatusOr<std::vector<float>> {
      for (const auto& [name, values] : factors) {
        if (name == tensor.name) return values;
      }
      return Error(ExitCode::kData, "no ", tensor.name);
    };
    return ReadGgufModel(header(), read, known);
  }
  void Set(const std::string& key, const GgufValue& value) {
    for (auto& [name, old] : metadata) {
      if (name != key) continue;
      old = value;
      return;
    }
    metadata.emplace_back(key, value);
  }
};

// With those tensors alone that reading looks at.
Draft DraftOf(const ModelConfig& model) {
  Draft draft;
  const auto metadata = GgufModelMetadata(model, "tiny", GgufType::kF32);
  EXPECT_TRUE(metadata.ok()) << metadata.status();
  draft.metadata = *metadata;
  draft.factors = GgufPositionFactors(model, HeadDimOf(model));
  draft.tensors.push_back({"token_embd.weight", GgufType::kF32, {model.vocab_size(), model.hidden_size()}});
  draft.tensors.push_back({"blk.0.attn_norm.weight", GgufType::kF32, {model.hidden_size()}});
  if (!model.tie_word_embeddings()) draft.tensors.push_back({"output.weight", GgufType::kF32, draft.tensors[0].shape});
  for (const auto& [name, values] : draft.factors)
    draft.tensors.push_back({name, GgufType::kF32, {static_cast<int64_t>(values.size())}});
  return draft;
}

void ExpectRefused(const Draft& draft, const std::string& why) {
  const auto read = draft.Read();
  ASSERT_FALSE(read.ok()) << "accepted; expected: " << why;
  EXPECT_EQ(ExitCodeOf(read.status()), ExitCode::kData);
  EXPECT_NE(read.status().message().find("x.gguf"), std::string::npos) << read.status();
  EXPECT_NE(read.status().message().find(why), std::string::npos) << read.status();
}
void ExpectRefused(const std::string& key, const GgufValue& value, const std::string& why, const char* of = "llama") {
  Draft draft = DraftOf(Of(of));
  draft.Set(key, value);
  ExpectRefused(draft, why);
}

// No file means the model.
void ExpectInexpressible(const std::string& fields, const std::string& why) {
  const ModelConfig model = Model(fields);
  const absl::Status status = CheckGgufMeans(DraftOf(model).header(), model);
  ASSERT_FALSE(status.ok()) << "accepted; expected: " << why;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig);
  EXPECT_NE(status.message().find(why), std::string::npos) << status;
}

TEST(GgufConfig, ModelsComeBackFromTheirKeys) {
  for (const char* family : {"llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "cohere2", "qwen3_moe",
                             "mixtral", "olmo2", "seed_oss", "gpt_oss", "deepseek_v3"}) {
    const ModelConfig model = Of(family);
    const Draft draft = DraftOf(model);
    const auto read = draft.Read();
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->name, "tiny");
    EXPECT_EQ(read->config.family(), family);
    EXPECT_EQ(read->config.rms_norm_eps(), family == std::string("cohere2") ? 1e-5 : model.rms_norm_eps())
        << "the decimal, not what 32 bits make of it";
    EXPECT_EQ(read->config.rope_theta(), model.rope_theta());
    EXPECT_EQ(read->config.num_experts(), model.num_experts());
    EXPECT_EQ(read->config.tie_word_embeddings(), model.tie_word_embeddings());
    EXPECT_TRUE(CheckGgufMeans(draft.header(), model).ok()) << CheckGgufMeans(draft.header(), model);
  }
}

TEST(GgufConfig, OneNameMayBeSeveralFamilies) {
  EXPECT_EQ(DraftOf(Of("mixtral")).metadata[0].second, GgufValue(std::string("llama")));
  EXPECT_EQ(DraftOf(Of("llama")).metadata[0].second, GgufValue(std::string("llama")));
}

TEST(GgufConfig, LatentAttentionIsOneKeyOfAllHeads) {
  Draft draft = DraftOf(Of("deepseek_v3"));
  const auto number = [&](const std::string& key) { return draft.header().Integer("deepseek2." + key).value_or(-1); };
  EXPECT_EQ(number("attention.head_count_kv"), 1);
  EXPECT_EQ(number("attention.key_length"), 24 + 16);
  EXPECT_EQ(number("attention.value_length"), 24);
  EXPECT_EQ(number("attention.key_length_mla"), 10 + 16);
  EXPECT_EQ(number("attention.value_length_mla"), 8);
  EXPECT_EQ(number("expert_gating_func"), 2);
  EXPECT_EQ(*draft.header().Find("deepseek2.rope.scaling.yarn_log_multiplier"), GgufValue(0.0707f));
  EXPECT_EQ(draft.Read()->config.rope_scaling().mscale_all_dim(), 0.707);
  EXPECT_EQ(draft.Read()->config.rope_scaling().mscale(), 0.707);
  const auto refused = [](const char* key, const GgufValue& value, const char* why) {
    ExpectRefused(absl::StrCat("deepseek2.", key), value, why, "deepseek_v3");
  };
  refused("attention.key_length", uint32_t{41}, "are not those of a latent of 24 that turns in 16");
  refused("attention.key_length_mla", uint32_t{16}, "queries of 16 elements turn in 16");
  refused("attention.layer_norm_rms_epsilon", 1e-5f, "rms_norm_eps is 1e-05");
  refused("rope.scaling.yarn_log_multiplier", 0.0f, "yarn_log_multiplier is 0");
  refused("rope.scaling.type", std::string("linear"), "by which llama.cpp scales the scores, too");
  refused("attention.q_lora_rank", uint32_t{0}, "q_lora_rank is 0 with 2 layers");
  refused("expert_gating_func", uint32_t{3}, "no model of architecture \"deepseek2\"");
  // Without a scoring function it is V2's, whose weights are not divided by their sum.
  refused("expert_gating_func", uint32_t{1}, "norm_topk_prob is 1");
}

TEST(GgufConfig, WhatAnArchitectureAssumesMustHold) {
  ExpectRefused("gemma2.attention.sliding_window", uint32_t{0}, "must be positive", "gemma2");
  ExpectRefused("gemma3.attention.sliding_window_pattern", uint32_t{2}, "only 6 is read", "gemma3_text");
  ExpectRefused("gemma2.attn_logit_softcapping", 0.0f, "attn_logit_softcapping is 0", "gemma2");
  ExpectRefused("gemma2.final_logit_softcapping", -1.0f, "final_logit_softcapping is -1", "gemma2");
  ExpectRefused("gemma3.rope.freq_base_swa", 0.0f, "rope.freq_base_swa is 0", "gemma3_text");
  ExpectRefused("qwen2.rope.scaling.factor", 0.0f, "rope.scaling.factor is 0", "qwen2");
  ExpectRefused("qwen3moe.expert_count", uint32_t{0}, "expert_count is 0", "qwen3_moe");
  ExpectRefused("qwen3moe.expert_count", uint32_t{1} << 20, "at most 8192 are read", "qwen3_moe");
  ExpectRefused("cohere2.attention.sliding_window_pattern", GgufArray(std::vector<bool>{true}),
                "1 entries for 2 layers", "cohere2");
}

TEST(GgufConfig, WhatLlamaCppWouldComputeOtherwiseIsNamed) {
  const std::string experts = "num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 32 ";
  ExpectInexpressible(experts + "family: 'qwen3_moe' norm_topk_prob: false", "always has norm_topk_prob true");
  ExpectInexpressible(experts + "family: 'qwen3_moe' norm_topk_prob: true mlp_only_layers: 0",
                      "mlp_only_layers lists 1");
  ExpectInexpressible(experts + "family: 'qwen2_moe' norm_topk_prob: true", "always has norm_topk_prob false");
  ExpectInexpressible(experts + "family: 'mixtral'", "would have moe_intermediate_size 96, the model has 32");
  ExpectInexpressible("family: 'llama' sliding_window: 24", "has no sliding window, the model has one of 24");
  ExpectInexpressible("family: 'llama' rope_scaling { rope_type: YARN beta_fast: 16 }",
                      "yarn_beta_fast is 16, but llama.cpp takes 32");
  ExpectInexpressible("family: 'llama' rope_scaling { rope_type: DYNAMIC }", "has no rope_scaling DYNAMIC");
  ExpectInexpressible("family: 'qwen2' rope_scaling { rope_type: LLAMA3 }", "has no rope_scaling LLAMA3");
  ExpectInexpressible("family: 'qwen2' attention_bias: true", "would have attention_bias false, the model has true");
  ExpectInexpressible("family: 'olmo2' tie_word_embeddings: true", "needs a head apart from the embedding");
  ExpectInexpressible("family: 'cohere' tie_word_embeddings: false", "has no head apart from the embedding");
  ExpectInexpressible("family: 'gpt2' hidden_act: 'gelu' num_key_value_heads: 4", "always has hidden_act \"gelu_new\"");
  ExpectInexpressible("family: 'smollm3' no_rope_layers: [1, 0]", "rotates in layer 1, the model differs");
  ExpectInexpressible(
      "family: 'gemma2' sliding_window: 24 attn_logit_softcapping: 50 final_logit_softcapping: 30 "
      "tie_word_embeddings: true query_pre_attn_scalar: 20",
      "would have query_pre_attn_scalar 16, the model has 20");
  ExpectInexpressible("family: 'phi3' head_dim: 32", "has heads that share hidden_size 64; head_dim 32 of 4 heads");
  EXPECT_FALSE(GgufModelMetadata(Model("family: 'opt'"), "", GgufType::kF32).ok());
}

// Scalings of published models: Llama 3.1, Llama 3.2, and one with other factors.
TEST(GgufConfig, PositionScalingIsRecoveredFromItsFactors) {
  for (const char* scaling : {"factor: 8 original_max_position_embeddings: 8192", "factor: 32 ",
                              "factor: 4 high_freq_factor: 2.5 original_max_position_embeddings: 2048"}) {
    for (const int head_dim : {64, 128}) {
      ModelConfig model = Model(absl::StrCat("family: 'llama' rope_scaling { rope_type: LLAMA3 ", scaling, "}"));
      model.set_head_dim(head_dim);
      const auto read = DraftOf(model).Read();
      ASSERT_TRUE(read.ok()) << read.status();
      const RopeScaling &ours = model.rope_scaling(), &theirs = read->config.rope_scaling();
      EXPECT_EQ(theirs.factor(), ours.factor());
      EXPECT_EQ(theirs.low_freq_factor(), ours.low_freq_factor());
      EXPECT_EQ(theirs.high_freq_factor(), ours.high_freq_factor());
      EXPECT_EQ(theirs.original_max_position_embeddings(), ours.original_max_position_embeddings());
    }
  }
}

// What cannot be told from the factors alone is read by who knows it.
TEST(GgufConfig, PositionScalingMayBeKnown) {
  ModelConfig model =
      Model("family: 'llama' rope_scaling { rope_type: LLAMA3 factor: 8 original_max_position_embeddings: 32 }");
  model.set_head_dim(8);
  const Draft draft = DraftOf(model);
  EXPECT_EQ(ExitCodeOf(draft.Read().status()), ExitCode::kData);
  const auto read = draft.Read(&model.rope_scaling());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->config.rope_scaling().original_max_position_embeddings(), 32);
  RopeScaling other = model.rope_scaling();
  other.set_factor(4);
  EXPECT_EQ(ExitCodeOf(draft.Read(&other).status()), ExitCode::kData);
}

TEST(GgufConfig, OtherPositionFactorsAreRefused) {
  ModelConfig model = Model("family: 'llama' rope_scaling { rope_type: LLAMA3 }");
  model.set_head_dim(64);
  Draft draft = DraftOf(model);
  std::vector<float> bent = draft.factors[0].second, nan = bent;
  for (float& factor : bent) factor = factor > 1 && factor < 8 ? std::sqrt(factor) : factor;
  nan[3] = std::nanf("");
  for (const std::vector<float>& factors :
       {bent, nan, std::vector<float>(32, 1.0f), std::vector<float>(32, 0.0f), std::vector<float>(32, INFINITY)}) {
    draft.factors[0].second = factors;
    ExpectRefused(draft, "is not the position scaling of Llama 3");
  }
}

TEST(GgufConfig, PositionFactorsAreOneForShortWavesAndTheScaleForLongOnes) {
  const ModelConfig model = Model("family: 'llama' rope_scaling { rope_type: LLAMA3 }");
  const std::vector<float> factors = GgufPositionFactors(model, 128)[0].second;
  ASSERT_EQ(factors.size(), 64u);
  EXPECT_EQ(factors.front(), 1);
  EXPECT_EQ(factors.back(), 8);
  for (size_t i = 1; i < factors.size(); ++i) EXPECT_GE(factors[i], factors[i - 1]);
}

TEST(GgufConfig, DefaultsAreThoseOfLlamaCpp) {
  Draft draft = DraftOf(Model());
  const std::set<std::string> optional = {"general.name",
                                          "llama.vocab_size",
                                          "llama.attention.key_length",
                                          "llama.attention.value_length",
                                          "llama.rope.dimension_count",
                                          "llama.rope.freq_base"};
  std::erase_if(draft.metadata, [&](const auto& entry) { return optional.count(entry.first) != 0; });
  auto read = draft.Read();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->config.head_dim(), 16);
  EXPECT_EQ(read->config.rope_theta(), 10000);
  EXPECT_EQ(read->config.vocab_size(), 50);
  draft.Set("llama.rope.scaling.factor", 4.0f);  // without a type it is linear
  read = draft.Read();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->config.rope_scaling().rope_type(), RopeScaling::LINEAR);
}

TEST(GgufConfig, WhatWouldBeComputedDifferentlyIsRefused) {
  ExpectRefused("general.architecture", std::string("mamba"), "architecture \"mamba\" is not read");
  ExpectRefused("split.count", uint16_t{3}, "is one of 3 files");
  ExpectRefused("llama.rope.dimension_count", uint32_t{8}, "with 8 rotated");
  ExpectRefused("llama.attention.value_length", uint32_t{8}, "values of 8");
  ExpectRefused("llama.rope.scaling.type", std::string("su"), "position scaling \"su\"");
  ExpectRefused("llama.rope.scaling.attn_factor", 1.5f, "attn_factor is 1.5");
  ExpectRefused("llama.rope.scale_linear", 2.0f, "older dialect");
  ExpectRefused("llama.attention.sliding_window", uint32_t{24}, "gives architecture llama no window");
  ExpectRefused("llama.attention.head_count", GgufArray(std::vector<int32_t>{4, 2}), "is not a whole number");
  ExpectRefused("llama.attention.head_count_kv", uint32_t{3}, "do not share");
}

TEST(GgufConfig, NumbersOutOfRangeAreRefused) {
  ExpectRefused("llama.block_count", uint32_t{0}, "llama.block_count is 0");
  ExpectRefused("llama.block_count", ~uint32_t{0}, "llama.block_count is 4294967295");
  ExpectRefused("llama.attention.head_count", uint32_t{0}, "llama.attention.head_count is 0");
  ExpectRefused("llama.attention.head_count", uint32_t{65}, "65 heads do not share 64 elements");
  ExpectRefused("llama.attention.key_length", ~uint32_t{0}, "llama.attention.key_length is");
  ExpectRefused("llama.embedding_length", int32_t{-64}, "llama.embedding_length is -64");
  ExpectRefused("llama.rope.freq_base", std::nanf(""), "out of range");
  ExpectRefused("llama.attention.layer_norm_rms_epsilon", -1.0f, "out of range");
  ExpectRefused("llama.vocab_size", uint32_t{49}, "has 50 rows where llama.vocab_size is 49");
}

TEST(GgufConfig, MetadataSaysWhatTheMatricesAre) {
  const std::pair<GgufType, uint32_t> types[] = {
      {GgufType::kF32, 0}, {GgufType::kF16, 1}, {GgufType::kQ4_0, 2}, {GgufType::kQ8_0, 7}, {GgufType::kBF16, 32}};
  for (const auto& [type, number] : types) {
    const GgufMetadata metadata = GgufModelMetadata(Model(), "", type).value();
    for (const auto& [key, value] : metadata) {
      if (key == "general.file_type") {
        EXPECT_EQ(value, GgufValue(number));
      }
    }
  }
}

}  // namespace
}  // namespace trireme
