// Names, shapes, types and order of rows of GGUF tensors, and files that hold other tensors than their model's.
#include "models/weights/gguf_layout.h"

#include <ATen/ops/empty.h>
#include <absl/strings/match.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "models/formats/gguf/gguf_fields.h"
#include "models/formats/gguf/gguf_writer.h"
#include "models/spec/family.h"
#include "models/weights/weight_source.h"

namespace trireme {
namespace {

constexpr char kLayoutSizes[] =
    "num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 96 "
    "vocab_size: 50 max_position_embeddings: 128 num_experts: 3 num_experts_per_tok: 2 moe_intermediate_size: 20 "
    "shared_expert_intermediate_size: 24 n_shared_experts: 1 ";

constexpr char kLatentSizes[] =
    "num_key_value_heads: 4 q_lora_rank: 20 kv_lora_rank: 24 qk_nope_head_dim: 10 qk_rope_head_dim: 6 v_head_dim: 8 "
    "first_k_dense_replace: 1 n_group: 1 topk_group: 1 ";

struct Laid {
  DecoderSpec spec;
  GgufLayout layout;
};

Laid LayoutFor(const std::string& family_name, const std::string& fields = "") {
  ModelConfig model;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kLayoutSizes, &model));
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(fields, &model)) << fields;
  model.set_family(family_name);
  const absl::StatusOr<ModelFamily> family = FindFamily(BuiltInFamilies(), family_name);
  EXPECT_TRUE(family.ok()) << family.status();
  std::vector<std::string> problems;
  Laid laid;
  laid.spec = Specify(*family, model, &problems);
  EXPECT_TRUE(problems.empty()) << problems[0];
  model = Filled(*family, model);
  const GgufArchitecture* architecture = GgufArchitectureOf(model);
  EXPECT_NE(architecture, nullptr) << family_name;
  laid.layout = GgufLayoutOf(*architecture, laid.spec);
  return laid;
}

std::vector<int64_t> LabelOf(const GgufLayout& layout, const std::string& name) {
  for (const WeightTable::Stored& stored : layout.table.stored) {
    if (stored.name == name) return stored.label;
  }
  return {};
}

using Shape = std::vector<int64_t>;

TEST(GgufLayout, TensorsHaveLlamaCppsNamesAndShapes) {
  const auto has = [](const char* family, const char* name, const Shape& shape, const char* fields = "") {
    EXPECT_EQ(LabelOf(LayoutFor(family, fields).layout, name), shape) << family << ": " << name;
  };
  has("llama", "blk.1.ffn_norm.weight", {64});
  has("llama", "blk.1.attn_k.weight", {32, 64});
  has("qwen2", "blk.1.attn_k.bias", {32});
  has("gemma2", "blk.1.post_attention_norm.weight", {64}, "sliding_window: 8");
  has("gemma2", "blk.1.ffn_norm.weight", {64}, "sliding_window: 8");
  has("olmo2", "blk.1.post_attention_norm.weight", {64});
  has("olmo2", "blk.1.post_ffw_norm.weight", {64});
  has("seed_oss", "blk.1.post_attention_norm.weight", {64});
  has("glm4", "blk.1.ffn_up.weight", {192, 64}, "head_dim: 16");
  has("glm4", "blk.1.ffn_norm.weight", {64}, "head_dim: 16");
  has("phi3", "blk.0.attn_qkv.weight", {128, 64});
  has("falcon", "blk.0.attn_norm_2.bias", {64}, "new_decoder_architecture: true");
  has("stablelm", "blk.0.attn_q_norm.weight", {4, 16}, "use_qk_norm: true");
  has("qwen3_moe", "blk.1.ffn_gate_exps.weight", {3, 20, 64});
  has("qwen3_moe", "blk.1.ffn_down_exps.weight", {3, 64, 20});
  has("qwen3_moe", "blk.1.ffn_gate_inp.weight", {3, 64});
  has("qwen2_moe", "blk.1.ffn_gate_inp_shexp.weight", {1, 64});
  has("glm4_moe", "blk.1.exp_probs_b.bias", {3}, "head_dim: 16");
  has("glm4_moe", "blk.0.ffn_gate.weight", {96, 64}, "head_dim: 16");
  has("gpt_oss", "blk.1.ffn_up_exps.weight", {3, 96, 64}, "head_dim: 16");
  has("gpt_oss", "blk.1.ffn_gate_exps.bias", {3, 96}, "head_dim: 16");
  has("gpt_oss", "blk.1.attn_sinks.weight", {4}, "head_dim: 16");
  has("deepseek_v3", "blk.1.attn_k_b.weight", {4, 24, 10}, kLatentSizes);
  has("deepseek_v3", "blk.1.attn_v_b.weight", {4, 8, 24}, kLatentSizes);
  has("deepseek_v3", "blk.1.attn_kv_a_mqa.weight", {30, 64}, kLatentSizes);
  has("deepseek_v3", "blk.1.exp_probs_b.bias", {3}, kLatentSizes);
}

TEST(GgufLayout, PairsStandSideBySide) {
  // Two heads of six: 0 1 2 | 3 4 5 becomes 0 3 1 4 2 5.
  const std::vector<int64_t> expected = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
  for (int64_t row = 0; row < 12; ++row) {
    EXPECT_EQ(OwnRow(row, 6), expected[row]);
    EXPECT_EQ(PairedRow(expected[row], 6), row);
  }
  const auto heads = [](const char* family, const char* name) {
    const GgufLayout layout = LayoutFor(family).layout;
    for (size_t i = 0; i < layout.table.stored.size(); ++i) {
      if (layout.table.stored[i].name == name) return layout.extras[i].paired_heads;
    }
    return int64_t{-1};
  };
  EXPECT_EQ(heads("llama", "blk.0.attn_q.weight"), 16);
  EXPECT_EQ(heads("llama", "blk.1.attn_k.weight"), 16);
  EXPECT_EQ(heads("llama", "blk.0.attn_v.weight"), 0);
  EXPECT_EQ(heads("llama", "token_embd.weight"), 0);
  EXPECT_EQ(heads("qwen2", "blk.0.attn_q.weight"), 0);
  EXPECT_EQ(heads("cohere", "blk.0.attn_q.weight"), 0);
}

TEST(GgufLayout, VectorsNormsAndRoutersStayF32AndSensitiveMatricesKeepEightBits) {
  const GgufLayout layout = LayoutFor("qwen3_moe", "moe_intermediate_size: 32").layout;
  const std::vector<GgufTensor> tensors = GgufTensors(layout, {}, GgufType::kQ4_0).value();
  for (const GgufTensor& tensor : tensors) {
    const bool sensitive = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
    const bool exact = tensor.shape.size() == 1 || absl::StrContains(tensor.name, "ffn_gate_inp");
    EXPECT_EQ(tensor.type, exact ? GgufType::kF32 : sensitive ? GgufType::kQ8_0 : GgufType::kQ4_0) << tensor.name;
  }
  const GgufLayout odd = LayoutFor("llama", "intermediate_size: 100").layout;
  const auto refused = GgufTensors(odd, {}, GgufType::kQ8_0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(ExitCodeOf(refused.status()), ExitCode::kConfig);
  EXPECT_NE(refused.status().message().find("blk.0.ffn_down.weight have 100 elements"), std::string::npos);
  EXPECT_TRUE(GgufTensors(odd, {}, GgufType::kBF16).ok());
}

TEST(GgufLayout, TensorsMustBeThoseOfTheModel) {
  const GgufLayout layout = LayoutFor("llama").layout;
  const std::vector<GgufTensor> tensors = *GgufTensors(layout, {}, GgufType::kF32);
  const auto expect = [&](const std::vector<GgufTensor>& changed, const std::string& why) {
    const absl::Status status = CheckGgufTensors(GgufHeader("x.gguf", {}, changed), layout);
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
    EXPECT_NE(status.message().find(why), std::string::npos) << status;
  };
  EXPECT_TRUE(CheckGgufTensors(GgufHeader("x.gguf", {}, tensors), layout).ok());
  std::vector<GgufTensor> changed = tensors;
  changed.erase(changed.begin() + 3);
  expect(changed, "has no tensor blk.0.attn_k.weight");
  changed = tensors;
  changed[2].shape = {32, 128};
  expect(changed, "tensor blk.0.attn_q.weight is [32, 128] where its metadata says [64, 64]");
  changed = tensors;
  changed.push_back({"blk.0.attn_q.bias", GgufType::kF32, {64}});
  expect(changed, "blk.0.attn_q.bias belongs to no model of architecture llama");
}

// A file whose tensors' elements are their number / 8.
std::unique_ptr<GgufFile> Numbered(const std::string& path, const GgufLayout& layout) {
  auto writer = GgufWriter::Create(path, {}, *GgufTensors(layout, {}, GgufType::kF32));
  EXPECT_TRUE(writer.ok()) << writer.status();
  while (const GgufTensor* tensor = (*writer)->current()) {
    std::vector<float> values(tensor->rows() * tensor->columns());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) / 8;
    EXPECT_TRUE((*writer)->Append(values.data(), static_cast<int64_t>(values.size())).ok());
  }
  EXPECT_TRUE((*writer)->Close().ok());
  return *GgufFile::Open(path);
}

// Reads a rectangle of a parameter of such a file.
std::vector<float> Rows(const Laid& laid, const std::string& name, const Rectangle& rectangle) {
  const std::string path = testing::TempDir() + "gguf_layout.gguf";
  const std::shared_ptr<const GgufFile> file = Numbered(path, laid.layout);
  const absl::StatusOr<WeightSource> source = OpenGgufWeights(file, *laid.layout.architecture, laid.spec);
  EXPECT_TRUE(source.ok()) << source.status();
  std::vector<float> values;
  for (const SourceTensor& tensor : source->tensors) {
    if (tensor.name != name) continue;
    const at::Tensor out = at::empty(rectangle.size, at::TensorOptions().dtype(at::kFloat));
    EXPECT_TRUE(source->read(tensor, rectangle, out).ok());
    values.assign(out.const_data_ptr<float>(), out.const_data_ptr<float>() + out.numel());
  }
  EXPECT_TRUE(RemoveAll(path).ok());
  return values;
}

TEST(GgufLayout, RowsInTurnAndTransposedOnesAreReadInOurOrder) {
  const auto numbers = [](const std::vector<int>& elements) {
    std::vector<float> values;
    for (const int element : elements) values.push_back(static_cast<float>(element) / 8);
    return values;
  };
  // Gate and up in turn: our rows 1, 2 and 3 of the first expert are rows 0 of up, 1 of gate and 1 of up.
  const Laid oss = LayoutFor("gpt_oss", "head_dim: 16");
  const std::string gate_up = "model.layers.0.mlp.experts.gate_up_proj.";
  EXPECT_EQ(Rows(oss, gate_up + "weight", {{1, 2}, {3, 1}}), numbers({2, 66, 66}));
  EXPECT_EQ(Rows(oss, gate_up + "weight", {{191, 0}, {2, 1}}), numbers({95 * 64, 96 * 64}));
  EXPECT_EQ(Rows(oss, gate_up + "bias", {{190}, {3}}), numbers({95, 95, 96}));
  // Of the second head the last two rows of keys, which are columns of the file, and the first two of values.
  const Laid latent = LayoutFor("deepseek_v3", kLatentSizes);
  EXPECT_EQ(Rows(latent, "model.layers.0.self_attn.kv_b_proj.weight", {{26, 3}, {4, 2}}),
            numbers({278, 288, 279, 289, 195, 196, 219, 220}));
}

TEST(GgufLayout, ARectangleIsReadInOurOrder) {
  const auto number = [](int64_t i) { return static_cast<float>(i) / 8; };
  const Laid llama = LayoutFor("llama");
  // Our rows 7 and 8 of a head of 16 are rows 14 and 1 of the file.
  EXPECT_EQ(Rows(llama, "model.layers.1.self_attn.q_proj.weight", {{7, 10}, {2, 2}}),
            (std::vector<float>{number(14 * 64 + 10), number(14 * 64 + 11), number(64 + 10), number(64 + 11)}));
  EXPECT_EQ(Rows(llama, "model.layers.1.self_attn.v_proj.weight", {{7, 10}, {2, 1}}),
            (std::vector<float>{number(7 * 64 + 10), number(8 * 64 + 10)}));
  // Row 20 of an expert is the first of its up, which stands in another tensor; two experts before it have 40 each.
  const Laid experts = LayoutFor("qwen3_moe");
  EXPECT_EQ(Rows(experts, "model.layers.0.mlp.experts.gate_up_proj.weight", {{99, 5}, {2, 1}}),
            (std::vector<float>{number((2 * 20 + 19) * 64 + 5), number(2 * 20 * 64 + 5)}));
  // Norms of Gemma are stored with their one.
  const Laid gemma = LayoutFor("gemma", "tie_word_embeddings: true head_dim: 16");
  EXPECT_EQ(Rows(gemma, "model.layers.0.input_layernorm.weight", {{4}, {2}}),
            (std::vector<float>{number(4) - 1, number(5) - 1}));
  // Keys stand behind the queries.
  const Laid phi = LayoutFor("phi3");
  EXPECT_EQ(Rows(phi, "model.layers.0.self_attn.k_proj.weight", {{1, 0}, {1, 1}}),
            std::vector<float>{number((64 + 1) * 64)});
}

}  // namespace
}  // namespace trireme
