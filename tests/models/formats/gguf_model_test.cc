// Names, order of rows and metadata of models, and files that do not say what a model needs.
#include "models/formats/gguf/gguf_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "models/formats/gguf/gguf_writer.h"

namespace trireme {
namespace {

GgufModelFacts Tiny() {
  GgufModelFacts facts;
  facts.name = "tiny";
  facts.block_count = 2;
  facts.context_length = 128;
  facts.embedding_length = 64;
  facts.feed_forward_length = 96;
  facts.head_count = 4;
  facts.head_count_kv = 2;
  facts.head_dim = 16;
  facts.vocab_size = 50;
  facts.layer_norm_rms_epsilon = 1e-5;
  facts.rope_freq_base = 5e5;
  return facts;
}

GgufModelFacts Of(const char* architecture) {
  GgufModelFacts facts = Tiny();
  facts.architecture = FindGgufArchitecture(architecture);
  facts.rope_linear_factor = 4;
  if (facts.architecture->window_period > 0) facts.sliding_window = 24;
  if (facts.architecture->local_rope) facts.rope_freq_base_swa = 1e4;
  if (facts.architecture->attention_softcap) facts.attn_logit_softcapping = 50;
  if (facts.architecture->gemma) {
    facts.tied_embeddings = true;
    facts.final_logit_softcapping = 30;
  }
  return facts;
}

class GgufModel : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "gguf_model_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  // Element i of a tensor is i / 8, but for the position factors.
  std::unique_ptr<GgufFile> Write(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors,
                                  const std::vector<float>& factors = {}) {
    const std::string path = folder_ + "/x.gguf";
    auto writer = GgufWriter::Create(path, metadata, tensors);
    EXPECT_TRUE(writer.ok()) << writer.status();
    while (const GgufTensor* tensor = (*writer)->current()) {
      std::vector<float> values(tensor->rows() * tensor->columns());
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) / 8;
      if (tensor->name == "rope_freqs.weight") values = factors;
      EXPECT_TRUE((*writer)->Append(values.data(), static_cast<int64_t>(values.size())).ok());
    }
    EXPECT_TRUE((*writer)->Close().ok());
    auto file = GgufFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  std::unique_ptr<GgufFile> Write(const GgufModelFacts& facts) {
    const std::vector<float> factors = facts.rope_scaling.has_value() ? GgufRopeFactors(facts) : std::vector<float>();
    return Write(GgufModelMetadata(facts, GgufType::kF32), *GgufModelTensors(facts, GgufType::kF32), factors);
  }

  using Change = std::function<void(GgufMetadata*, std::vector<GgufTensor>*)>;
  void ExpectRefused(const Change& change, const std::string& why) {
    GgufMetadata metadata = GgufModelMetadata(Tiny(), GgufType::kF32);
    std::vector<GgufTensor> tensors = *GgufModelTensors(Tiny(), GgufType::kF32);
    change(&metadata, &tensors);
    const auto facts = ReadGgufFacts(*Write(metadata, tensors));
    ASSERT_FALSE(facts.ok()) << "accepted; expected: " << why;
    EXPECT_EQ(ExitCodeOf(facts.status()), ExitCode::kData);
    EXPECT_NE(facts.status().message().find("x.gguf"), std::string::npos) << facts.status();
    EXPECT_NE(facts.status().message().find(why), std::string::npos) << facts.status();
  }
  void ExpectRefused(const std::string& key, const GgufValue& value, const std::string& why) {
    ExpectRefused(
        [&](GgufMetadata* metadata, std::vector<GgufTensor>*) {
          for (auto& [name, old] : *metadata) {
            if (name != key) continue;
            old = value;
            return;
          }
          metadata->emplace_back(key, value);
        },
        why);
  }

  std::string folder_;
};

void ExpectEqual(const GgufModelFacts& a, const GgufModelFacts& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.block_count, b.block_count);
  EXPECT_EQ(a.context_length, b.context_length);
  EXPECT_EQ(a.embedding_length, b.embedding_length);
  EXPECT_EQ(a.feed_forward_length, b.feed_forward_length);
  EXPECT_EQ(a.head_count, b.head_count);
  EXPECT_EQ(a.head_count_kv, b.head_count_kv);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.layer_norm_rms_epsilon, b.layer_norm_rms_epsilon) << "the decimal, not what 32 bits make of it";
  EXPECT_EQ(a.rope_freq_base, b.rope_freq_base);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.rope_freq_base_swa, b.rope_freq_base_swa);
  EXPECT_EQ(a.attn_logit_softcapping, b.attn_logit_softcapping);
  EXPECT_EQ(a.final_logit_softcapping, b.final_logit_softcapping);
  EXPECT_EQ(a.rope_linear_factor, b.rope_linear_factor);
  ASSERT_EQ(a.rope_scaling.has_value(), b.rope_scaling.has_value());
  if (!a.rope_scaling.has_value()) return;
  EXPECT_EQ(a.rope_scaling->factor, b.rope_scaling->factor);
  EXPECT_EQ(a.rope_scaling->low_freq_factor, b.rope_scaling->low_freq_factor);
  EXPECT_EQ(a.rope_scaling->high_freq_factor, b.rope_scaling->high_freq_factor);
  EXPECT_EQ(a.rope_scaling->original_max_position_embeddings, b.rope_scaling->original_max_position_embeddings);
}

TEST_F(GgufModel, OtherArchitecturesHaveTheirOwnKeysAndTensors) {
  for (const auto& [name, canonical, shape] : {std::tuple("qwen2", "model.layers.1.self_attn.k_proj.bias", 32),
                                               {"qwen3", "model.layers.1.self_attn.k_norm.weight", 16},
                                               {"smollm3", "model.layers.1.post_attention_layernorm.weight", 64},
                                               {"gemma2", "model.layers.1.pre_feedforward_layernorm.weight", 64},
                                               {"gemma3", "model.layers.1.post_feedforward_layernorm.weight", 64}}) {
    const GgufModelFacts facts = Of(name);
    const auto file = Write(facts);
    const auto read = ReadGgufFacts(*file);
    ASSERT_TRUE(read.ok()) << read.status();
    ExpectEqual(*read, facts);
    EXPECT_EQ(read->architecture, facts.architecture);
    EXPECT_EQ(file->Integer(absl::StrCat(name, ".block_count")).value_or(0), 2);
    const GgufTensor* tensor = file->FindTensor(*ToGgufName(*facts.architecture, canonical));
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->shape, std::vector<int64_t>{shape});
    EXPECT_EQ(ToCanonicalName(*facts.architecture, tensor->name), canonical);
  }
}

TEST_F(GgufModel, WhatAnArchitectureAssumesMustHold) {
  const auto refused = [&](const char* architecture, const char* key, const GgufValue& value, const char* why) {
    GgufMetadata metadata = GgufModelMetadata(Of(architecture), GgufType::kF32);
    bool found = false;
    for (auto& [name, old] : metadata) {
      if (name == key) old = value, found = true;
    }
    if (!found) metadata.emplace_back(key, value);
    const auto facts = ReadGgufFacts(*Write(metadata, *GgufModelTensors(Of(architecture), GgufType::kF32)));
    ASSERT_FALSE(facts.ok()) << key;
    EXPECT_NE(facts.status().message().find(why), std::string::npos) << facts.status();
  };
  refused("gemma2", "gemma2.attention.sliding_window", uint32_t{0}, "must be positive");
  refused("gemma3", "gemma3.attention.sliding_window_pattern", uint32_t{2}, "only 6 is read");
  refused("gemma2", "gemma2.attn_logit_softcapping", 0.0f, "attn_logit_softcapping is 0");
  refused("gemma2", "gemma2.final_logit_softcapping", -1.0f, "final_logit_softcapping is -1");
  refused("gemma3", "gemma3.rope.freq_base_swa", 0.0f, "rope.freq_base_swa is 0");
  refused("qwen2", "qwen2.rope.scaling.factor", 0.0f, "rope.scaling.factor is 0");
}

TEST_F(GgufModel, NormsOfGemmaAreStoredWithTheirOne) {
  const GgufModelFacts facts = Of("gemma3");
  const auto file = Write(facts);
  float values[4];
  ASSERT_TRUE(ReadGgufRows(*file, facts, "model.layers.0.self_attn.q_norm.weight", 0, 1, 4, 8, values).ok());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(values[i], static_cast<float>(4 + i) / 8 - 1);
  ASSERT_TRUE(ReadGgufRows(*file, facts, "model.layers.0.self_attn.q_proj.weight", 0, 1, 4, 8, values).ok());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(values[i], static_cast<float>(4 + i) / 8);
}

TEST_F(GgufModel, FactsSurviveAFile) {
  for (const bool tied : {false, true}) {
    GgufModelFacts facts = Tiny();
    facts.tied_embeddings = tied;
    const auto read = ReadGgufFacts(*Write(facts));
    ASSERT_TRUE(read.ok()) << read.status();
    ExpectEqual(*read, facts);
  }
}

// Scalings of published models: Llama 3.1, Llama 3.2, and one with other factors.
TEST_F(GgufModel, PositionScalingIsRecoveredFromItsFactors) {
  for (const GgufRopeScaling& scaling :
       {GgufRopeScaling{8, 1, 4, 8192}, GgufRopeScaling{32, 1, 4, 8192}, GgufRopeScaling{4, 1, 2.5, 2048}}) {
    for (const int64_t head_dim : {64, 128}) {
      GgufModelFacts facts = Tiny();
      facts.head_dim = head_dim;
      facts.rope_scaling = scaling;
      const auto read = ReadGgufFacts(*Write(facts));
      ASSERT_TRUE(read.ok()) << read.status();
      ExpectEqual(*read, facts);
    }
  }
}

// What cannot be told from the factors alone is read by who knows it.
TEST_F(GgufModel, PositionScalingMayBeKnown) {
  GgufModelFacts facts = Tiny();
  facts.head_dim = 8;
  facts.rope_scaling = GgufRopeScaling{8, 1, 4, 32};
  const auto file = Write(facts);
  EXPECT_EQ(ExitCodeOf(ReadGgufFacts(*file).status()), ExitCode::kData);
  const auto read = ReadGgufFacts(*file, &*facts.rope_scaling);
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(*read, facts);
  const GgufRopeScaling other = {4, 1, 4, 32};
  EXPECT_EQ(ExitCodeOf(ReadGgufFacts(*file, &other).status()), ExitCode::kData);
}

TEST_F(GgufModel, OtherPositionFactorsAreRefused) {
  GgufModelFacts facts = Tiny();
  facts.head_dim = 64;
  facts.rope_scaling = GgufRopeScaling();
  const GgufMetadata metadata = GgufModelMetadata(facts, GgufType::kF32);
  const std::vector<GgufTensor> tensors = *GgufModelTensors(facts, GgufType::kF32);
  std::vector<float> bent = GgufRopeFactors(facts), nan = bent;
  for (float& factor : bent) factor = factor > 1 && factor < 8 ? std::sqrt(factor) : factor;
  nan[3] = std::nanf("");
  for (const std::vector<float>& factors :
       {bent, nan, std::vector<float>(32, 1.0f), std::vector<float>(32, 0.0f), std::vector<float>(32, INFINITY)}) {
    const auto read = ReadGgufFacts(*Write(metadata, tensors, factors));
    ASSERT_FALSE(read.ok());
    EXPECT_NE(read.status().message().find("is not the position scaling of Llama 3"), std::string::npos);
  }
}

TEST_F(GgufModel, PositionFactorsAreOneForShortWavesAndTheScaleForLongOnes) {
  GgufModelFacts facts = Tiny();
  facts.head_dim = 128;
  facts.rope_scaling = GgufRopeScaling();
  const std::vector<float> factors = GgufRopeFactors(facts);
  ASSERT_EQ(factors.size(), 64u);
  EXPECT_EQ(factors.front(), 1);
  EXPECT_EQ(factors.back(), 8);
  for (size_t i = 1; i < factors.size(); ++i) EXPECT_GE(factors[i], factors[i - 1]);
}

TEST_F(GgufModel, DefaultsAreThoseOfLlamaCpp) {
  GgufMetadata metadata = GgufModelMetadata(Tiny(), GgufType::kF32);
  const std::set<std::string> optional = {"general.name",
                                          "llama.vocab_size",
                                          "llama.attention.key_length",
                                          "llama.attention.value_length",
                                          "llama.rope.dimension_count",
                                          "llama.rope.freq_base"};
  std::erase_if(metadata, [&](const auto& entry) { return optional.count(entry.first) != 0; });
  const auto read = ReadGgufFacts(*Write(metadata, *GgufModelTensors(Tiny(), GgufType::kF32)));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->head_dim, 16);
  EXPECT_EQ(read->rope_freq_base, 10000);
  EXPECT_EQ(read->vocab_size, 50);
}

TEST_F(GgufModel, WhatWouldBeComputedDifferentlyIsRefused) {
  ExpectRefused("general.architecture", std::string("falcon"), "architecture \"falcon\" is not read");
  ExpectRefused("split.count", uint16_t{3}, "is one of 3 files");
  ExpectRefused("llama.rope.dimension_count", uint32_t{8}, "with 8 rotated");
  ExpectRefused("llama.attention.value_length", uint32_t{8}, "values of 8");
  ExpectRefused("llama.rope.scaling.type", std::string("yarn"), "position scaling \"yarn\"");
  ExpectRefused("llama.rope.scale_linear", 2.0f, "older dialect");
  ExpectRefused("llama.attention.sliding_window", uint32_t{24}, "gives architecture llama no window");
  ExpectRefused("llama.attention.head_count", GgufArray(std::vector<int32_t>{4, 2}), "is not a whole number");
  ExpectRefused("llama.attention.head_count_kv", uint32_t{3}, "do not share");
}

TEST_F(GgufModel, NumbersOutOfRangeAreRefused) {
  ExpectRefused("llama.block_count", uint32_t{0}, "llama.block_count is 0");
  ExpectRefused("llama.block_count", ~uint32_t{0}, "llama.block_count is 4294967295");
  ExpectRefused("llama.attention.head_count", uint32_t{0}, "llama.attention.head_count is 0");
  ExpectRefused("llama.attention.key_length", ~uint32_t{0}, "llama.attention.key_length is");
  ExpectRefused("llama.embedding_length", int32_t{-64}, "llama.embedding_length is -64");
  ExpectRefused("llama.rope.freq_base", std::nanf(""), "out of range");
  ExpectRefused("llama.attention.layer_norm_rms_epsilon", -1.0f, "out of range");
  ExpectRefused("llama.vocab_size", uint32_t{49}, "has 50 rows where llama.vocab_size is 49");
}

TEST_F(GgufModel, TensorsMustBeThoseOfTheModel) {
  ExpectRefused([](GgufMetadata*, std::vector<GgufTensor>* tensors) { tensors->erase(tensors->begin() + 3); },
                "has no tensor blk.0.attn_k.weight");
  ExpectRefused([](GgufMetadata*, std::vector<GgufTensor>* tensors) { tensors->front().name = "other"; },
                "has no token_embd.weight");
  ExpectRefused(
      [](GgufMetadata*, std::vector<GgufTensor>* tensors) {
        (*tensors)[2].shape = {32, 128};
      },
      "tensor blk.0.attn_q.weight is [32, 128] where its metadata says [64, 64]");
  ExpectRefused(
      [](GgufMetadata*, std::vector<GgufTensor>* tensors) {
        tensors->push_back({"blk.0.attn_q.bias", GgufType::kF32, {64}});
      },
      "blk.0.attn_q.bias belongs to no model of architecture llama");
}

TEST_F(GgufModel, MetadataSaysWhatTheMatricesAre) {
  const std::pair<GgufType, uint32_t> types[] = {
      {GgufType::kF32, 0}, {GgufType::kF16, 1}, {GgufType::kQ4_0, 2}, {GgufType::kQ8_0, 7}, {GgufType::kBF16, 32}};
  for (const auto& [type, number] : types) {
    for (const auto& [key, value] : GgufModelMetadata(Tiny(), type)) {
      if (key == "general.file_type") {
        EXPECT_EQ(value, GgufValue(number));
      }
    }
  }
}

TEST_F(GgufModel, VectorsStayF32AndSensitiveMatricesKeepEightBits) {
  const std::vector<GgufTensor> tensors = *GgufModelTensors(Tiny(), GgufType::kQ4_0);
  for (const GgufTensor& tensor : tensors) {
    const bool sensitive = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
    EXPECT_EQ(tensor.type, tensor.shape.size() == 1 ? GgufType::kF32
                           : sensitive              ? GgufType::kQ8_0
                                                    : GgufType::kQ4_0)
        << tensor.name;
  }
  GgufModelFacts odd = Tiny();
  odd.feed_forward_length = 100;
  const auto refused = GgufModelTensors(odd, GgufType::kQ8_0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(ExitCodeOf(refused.status()), ExitCode::kConfig);
  EXPECT_NE(refused.status().message().find("blk.0.ffn_down.weight have 100 elements"), std::string::npos);
  EXPECT_TRUE(GgufModelTensors(odd, GgufType::kBF16).ok());
}

TEST(GgufLlamaNames, GoBothWays) {
  const std::pair<const char*, const char*> names[] = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"},
      {"model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"},
      {"model.layers.12.self_attn.q_proj.weight", "blk.12.attn_q.weight"},
      {"model.layers.3.self_attn.o_proj.weight", "blk.3.attn_output.weight"},
      {"model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"},
      {"model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"},
      {"model.layers.3.self_attn.v_proj.bias", "blk.3.attn_v.bias"},
      {"model.layers.3.self_attn.q_norm.weight", "blk.3.attn_q_norm.weight"},
  };
  for (const auto& [canonical, gguf] : names) {
    EXPECT_EQ(ToGgufName(*FindGgufArchitecture("llama"), canonical), gguf);
    EXPECT_EQ(ToCanonicalName(*FindGgufArchitecture("llama"), gguf), canonical);
  }
  for (const char* name : {"", "blk.", "blk.1", "blk.1.", "blk.x.attn_q.weight", "blk.-1.attn_q.weight", "blk..weight",
                           "blk.01.attn_q.weight", "blk.99999999999999999999.attn_q.weight", "rope_freqs.weight",
                           "blk.1.attn_output.bias", "model.norm.weight"})
    EXPECT_EQ(ToCanonicalName(*FindGgufArchitecture("llama"), name), std::nullopt) << name;
}

TEST(GgufLlamaRows, InterleaveTheHalvesOfEachHead) {
  // Two heads of six: 0 1 2 | 3 4 5 becomes 0 3 1 4 2 5.
  const std::vector<int64_t> expected = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
  for (int64_t row = 0; row < 12; ++row) {
    EXPECT_EQ(LlamaCanonicalRow(row, 6), expected[row]);
    EXPECT_EQ(LlamaGgufRow(expected[row], 6), row);
  }
  EXPECT_TRUE(GgufReordersRows(*FindGgufArchitecture("llama"), "model.layers.0.self_attn.q_proj.weight"));
  EXPECT_TRUE(GgufReordersRows(*FindGgufArchitecture("llama"), "model.layers.7.self_attn.k_proj.weight"));
  EXPECT_FALSE(GgufReordersRows(*FindGgufArchitecture("llama"), "model.layers.0.self_attn.v_proj.weight"));
  EXPECT_FALSE(GgufReordersRows(*FindGgufArchitecture("llama"), "model.embed_tokens.weight"));
  EXPECT_FALSE(GgufReordersRows(*FindGgufArchitecture("qwen2"), "model.layers.0.self_attn.q_proj.weight"));
}

TEST_F(GgufModel, ARectangleIsReadInCanonicalOrder) {
  const std::unique_ptr<GgufFile> file = Write(Tiny());
  const GgufModelFacts facts = *ReadGgufFacts(*file);
  float values[2 * 3];
  // Canonical rows 7 and 8 of a head of 16 are rows 14 and 1 of the file.
  ASSERT_TRUE(ReadGgufRows(*file, facts, "model.layers.1.self_attn.q_proj.weight", 7, 9, 10, 13, values).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(values[i], static_cast<float>(14 * 64 + 10 + i) / 8);
    EXPECT_EQ(values[3 + i], static_cast<float>(1 * 64 + 10 + i) / 8);
  }
  ASSERT_TRUE(ReadGgufRows(*file, facts, "model.layers.1.self_attn.v_proj.weight", 7, 9, 10, 13, values).ok());
  EXPECT_EQ(values[0], static_cast<float>(7 * 64 + 10) / 8);
  EXPECT_EQ(values[3], static_cast<float>(8 * 64 + 10) / 8);
}

}  // namespace
}  // namespace trireme
