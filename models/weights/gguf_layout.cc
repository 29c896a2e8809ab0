#include "models/weights/gguf_layout.h"

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>

#include <algorithm>

#include "models/weights/tensor_mismatch.h"

namespace trireme {
namespace {

bool NormsOnlyAfter(const DecoderSpec& spec) { return !spec.layer(0).norm_before; }
bool NormsAround(const DecoderSpec& spec) { return spec.layer(0).norm_before && spec.layer(0).norm_after; }
bool TwoParallelNorms(const DecoderSpec& spec) { return spec.layer(0).parallel && !spec.layer(0).shared_norm; }

// What tensors are called unless an architecture has rules of its own, which stand before these.
std::vector<WeightRule> CommonRules() {
  return {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.embed_positions.weight", "position_embd.weight"},
      {"model.embed_norm.weight", "token_embd_norm.weight"},
      {"model.embed_norm.bias", "token_embd_norm.bias"},
      {"model.norm.weight", "output_norm.weight"},
      {"model.norm.bias", "output_norm.bias"},
      {"lm_head.weight", "output.weight"},
      {"lm_head.bias", "output.bias"},
      {"model.layers.*.input_layernorm.weight", "blk.*.attn_norm.weight"},
      {"model.layers.*.input_layernorm.bias", "blk.*.attn_norm.bias"},
      {"model.layers.*.self_attn.q_proj.weight", "blk.*.attn_q.weight"},
      {"model.layers.*.self_attn.k_proj.weight", "blk.*.attn_k.weight"},
      {"model.layers.*.self_attn.v_proj.weight", "blk.*.attn_v.weight"},
      {"model.layers.*.self_attn.o_proj.weight", "blk.*.attn_output.weight"},
      {"model.layers.*.self_attn.q_proj.bias", "blk.*.attn_q.bias"},
      {"model.layers.*.self_attn.k_proj.bias", "blk.*.attn_k.bias"},
      {"model.layers.*.self_attn.v_proj.bias", "blk.*.attn_v.bias"},
      {"model.layers.*.self_attn.o_proj.bias", "blk.*.attn_output.bias"},
      {"model.layers.*.self_attn.q_norm.weight", "blk.*.attn_q_norm.weight"},
      {"model.layers.*.self_attn.k_norm.weight", "blk.*.attn_k_norm.weight"},
      {"model.layers.*.self_attn.q_norm.bias", "blk.*.attn_q_norm.bias"},
      {"model.layers.*.self_attn.k_norm.bias", "blk.*.attn_k_norm.bias"},
      // It stands before the feed-forward layer, unless there are norms behind the parts: then it is what it says.
      {.name = "model.layers.*.post_attention_layernorm.weight",
       .stored = "blk.*.post_attention_norm.weight",
       .applies = &NormsOnlyAfter},
      {.name = "model.layers.*.post_attention_layernorm.weight",
       .stored = "blk.*.post_attention_norm.weight",
       .applies = &NormsAround},
      {"model.layers.*.post_attention_layernorm.weight", "blk.*.ffn_norm.weight"},
      {"model.layers.*.post_attention_layernorm.bias", "blk.*.ffn_norm.bias"},
      {"model.layers.*.pre_feedforward_layernorm.weight", "blk.*.ffn_norm.weight"},
      {"model.layers.*.post_feedforward_layernorm.weight", "blk.*.post_ffw_norm.weight"},
      {"model.layers.*.mlp.gate_proj.weight", "blk.*.ffn_gate.weight"},
      {"model.layers.*.mlp.up_proj.weight", "blk.*.ffn_up.weight"},
      {"model.layers.*.mlp.down_proj.weight", "blk.*.ffn_down.weight"},
      {"model.layers.*.mlp.gate_proj.bias", "blk.*.ffn_gate.bias"},
      {"model.layers.*.mlp.up_proj.bias", "blk.*.ffn_up.bias"},
      {"model.layers.*.mlp.down_proj.bias", "blk.*.ffn_down.bias"},
      {"model.layers.*.mlp.gate.weight", "blk.*.ffn_gate_inp.weight"},
      {"model.layers.*.mlp.gate.e_score_correction_bias", "blk.*.exp_probs_b.bias"},
      {.name = "model.layers.*.mlp.experts.gate_up_proj.weight",
       .stored = "blk.*.ffn_gate_exps.weight|blk.*.ffn_up_exps.weight",
       .by_heads = true},
      {.name = "model.layers.*.mlp.experts.down_proj.weight", .stored = "blk.*.ffn_down_exps.weight", .by_heads = true},
      {"model.layers.*.mlp.shared_expert.gate_proj.weight", "blk.*.ffn_gate_shexp.weight"},
      {"model.layers.*.mlp.shared_expert.up_proj.weight", "blk.*.ffn_up_shexp.weight"},
      {"model.layers.*.mlp.shared_expert.down_proj.weight", "blk.*.ffn_down_shexp.weight"},
      {"model.layers.*.mlp.shared_expert_gate.weight", "blk.*.ffn_gate_inp_shexp.weight"},
  };
}

// The learned numbers of activations, which are metadata.
std::vector<WeightRule> XieluRules() {
  return {{"model.layers.*.mlp.act_fn.alpha_p", "xielu.alpha_p.*"},
          {"model.layers.*.mlp.act_fn.alpha_n", "xielu.alpha_n.*"},
          {"model.layers.*.mlp.act_fn.beta", "xielu.beta.*"},
          {"model.layers.*.mlp.act_fn.eps", "xielu.eps.*"}};
}

// q, k and v, one after another.
std::vector<WeightRule> FusedQkv(bool rotary_order) {
  std::vector<WeightRule> rules = Fused(
      "blk.*.attn_qkv.weight", {"model.layers.*.self_attn.q_proj.weight", "model.layers.*.self_attn.k_proj.weight",
                                "model.layers.*.self_attn.v_proj.weight"});
  for (const WeightRule& rule :
       Fused("blk.*.attn_qkv.bias", {"model.layers.*.self_attn.q_proj.bias", "model.layers.*.self_attn.k_proj.bias",
                                     "model.layers.*.self_attn.v_proj.bias"}))
    rules.push_back(rule);
  for (WeightRule& rule : rules) rule.rotary_order = rotary_order && rule.part < 2;
  return rules;
}

std::vector<WeightRule> FusedGateUpRules() {
  return Fused("blk.*.ffn_up.weight", {"model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"});
}

// The norms of heads, each of which has a weight of its own.
std::vector<WeightRule> NormsByHead() {
  return {{.name = "model.layers.*.self_attn.q_norm.weight", .stored = "blk.*.attn_q_norm.weight", .by_heads = true},
          {.name = "model.layers.*.self_attn.k_norm.weight", .stored = "blk.*.attn_k_norm.weight", .by_heads = true}};
}

// ggml calls the norm before the feed-forward layer by what it is called in Hugging Face's files.
std::vector<WeightRule> PostAttentionNorm() {
  return {{"model.layers.*.post_attention_layernorm.weight", "blk.*.post_attention_norm.weight"}};
}

// The norm of attention is the second of two.
std::vector<WeightRule> FalconNorms() {
  const auto rule = [](const char* name, const char* stored) {
    return WeightRule{.name = name, .stored = stored, .applies = &TwoParallelNorms};
  };
  return {rule("model.layers.*.input_layernorm.weight", "blk.*.attn_norm_2.weight"),
          rule("model.layers.*.input_layernorm.bias", "blk.*.attn_norm_2.bias"),
          rule("model.layers.*.post_attention_layernorm.weight", "blk.*.attn_norm.weight"),
          rule("model.layers.*.post_attention_layernorm.bias", "blk.*.attn_norm.bias")};
}

// Gate and up lie in turn in our rows, and apart in files.
std::vector<WeightRule> GptOssRules() {
  return {
      {"model.layers.*.post_attention_layernorm.weight", "blk.*.post_attention_norm.weight"},
      {"model.layers.*.self_attn.sinks", "blk.*.attn_sinks.weight"},
      {"model.layers.*.mlp.gate.bias", "blk.*.ffn_gate_inp.bias"},
      {.name = "model.layers.*.mlp.experts.gate_up_proj.weight",
       .stored = "blk.*.ffn_gate_exps.weight|blk.*.ffn_up_exps.weight",
       .by_heads = true,
       .in_turn = true},
      {.name = "model.layers.*.mlp.experts.gate_up_proj.bias",
       .stored = "blk.*.ffn_gate_exps.bias|blk.*.ffn_up_exps.bias",
       .by_heads = true,
       .in_turn = true},
      {.name = "model.layers.*.mlp.experts.down_proj.bias", .stored = "blk.*.ffn_down_exps.bias", .by_heads = true}};
}

// What turns in a key is the latent's and all heads'; a head's own part of a key multiplies queries instead.
int64_t KeyRows(const DecoderSpec& spec) {
  const std::optional<AttentionShape> shape = spec.layer(0).mixer->attention();
  TRIREME_CHECK(shape.has_value() && shape->rotation.has_value(), "latent attention turns keys");
  return shape->head_dim - shape->rotation->dims;
}

std::vector<WeightRule> LatentRules() {
  return {{"model.layers.*.self_attn.q_a_proj.weight", "blk.*.attn_q_a.weight"},
          {"model.layers.*.self_attn.q_a_layernorm.weight", "blk.*.attn_q_a_norm.weight"},
          {"model.layers.*.self_attn.q_b_proj.weight", "blk.*.attn_q_b.weight"},
          {"model.layers.*.self_attn.kv_a_proj_with_mqa.weight", "blk.*.attn_kv_a_mqa.weight"},
          {"model.layers.*.self_attn.kv_a_layernorm.weight", "blk.*.attn_kv_a_norm.weight"},
          {.name = "model.layers.*.self_attn.kv_b_proj.weight",
           .stored = "blk.*.attn_k_b.weight|blk.*.attn_v_b.weight",
           .by_heads = true,
           .turned_rows = &KeyRows}};
}

// An architecture's own rules, by its name.
std::vector<WeightRule> OwnRules(absl::string_view name) {
  const auto both = [](std::vector<WeightRule> rules, const std::vector<WeightRule>& more) {
    rules.insert(rules.end(), more.begin(), more.end());
    return rules;
  };
  if (name == "gpt2" || name == "bloom") return FusedQkv(/*rotary_order=*/false);
  if (name == "gptneox") return FusedQkv(/*rotary_order=*/true);
  if (name == "falcon") return both(FusedQkv(/*rotary_order=*/false), FalconNorms());
  if (name == "phi3") return both(FusedQkv(/*rotary_order=*/false), FusedGateUpRules());
  if (name == "glm4" || name == "chatglm") return FusedGateUpRules();
  if (name == "seed_oss" || name == "glm4moe") return PostAttentionNorm();
  if (name == "apertus") return XieluRules();
  if (name == "gpt-oss") return GptOssRules();
  if (name == "deepseek2") return LatentRules();
  if (name == "command-r" || name == "stablelm") return NormsByHead();
  return {};
}

WeightNames NamesOf(const GgufArchitecture& architecture) {
  WeightNames names;
  names.rules = OwnRules(architecture.name);
  for (const WeightRule& rule : CommonRules()) names.rules.push_back(rule);
  return names;
}

// Vectors, norms, routers and biases (of experts: stacked) are never rounded.
bool StaysF32(const GgufTensor& tensor) {
  return tensor.shape.size() < 2 || absl::EndsWith(tensor.name, "_norm.weight") ||
         absl::EndsWith(tensor.name, ".bias") || absl::StrContains(tensor.name, ".ffn_gate_inp") ||
         tensor.name == "position_embd.weight";
}

// Without leading ones, which a file may have or not.
std::vector<int64_t> Trimmed(const std::vector<int64_t>& shape) {
  const auto first = std::find_if(shape.begin(), shape.end(), [](int64_t extent) { return extent != 1; });
  return {first, shape.end()};
}

}  // namespace

GgufLayout GgufLayoutOf(const GgufArchitecture& architecture, const DecoderSpec& spec) {
  GgufLayout layout;
  layout.architecture = &architecture;
  layout.table = MakeWeightTable(spec, NamesOf(architecture));
  const std::optional<AttentionShape> attention = spec.layer(0).mixer->attention();
  for (const WeightTable::Stored& stored : layout.table.stored) {
    GgufLayout::Extra extra;
    const auto is = [&](const char* what) { return absl::StrContains(stored.name, what); };
    if (architecture.reorders_rows && attention.has_value() && (is(".attn_q.") || is(".attn_k.")))
      extra.paired_heads = attention->head_dim;
    if (absl::EndsWith(stored.name, "norm.weight")) extra.offset = static_cast<float>(spec.layer(0).norm.offset);
    if (absl::StartsWith(stored.name, "xielu.")) {
      const size_t dot = stored.name.rfind('.');
      extra.key = stored.name.substr(0, dot);
      TRIREME_CHECK(absl::SimpleAtoi(stored.name.substr(dot + 1), &extra.element), stored.name);
    }
    layout.extras.push_back(extra);
  }
  return layout;
}

absl::StatusOr<std::vector<GgufTensor>> GgufTensors(const GgufLayout& layout, const GgufFactors& factors,
                                                    GgufType type) {
  std::vector<GgufTensor> tensors;
  for (size_t i = 0; i < layout.table.stored.size(); ++i) {
    if (!layout.extras[i].key.empty()) continue;
    const WeightTable::Stored& stored = layout.table.stored[i];
    GgufTensor tensor = {stored.name, GgufType::kF32, stored.label};
    if (!StaysF32(tensor)) {
      const bool sensitive = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
      tensor.type = type == GgufType::kQ4_0 && sensitive ? GgufType::kQ8_0 : type;
      const int64_t block = FindGgufType(tensor.type)->block_elements;
      if (tensor.columns() % block != 0) {
        return Error(ExitCode::kConfig, "gguf: ", GgufTypeName(tensor.type), " stores rows in blocks of ", block,
                     ", but those of ", tensor.name, " have ", tensor.columns(), " elements; choose F16 or BF16");
      }
    }
    tensors.push_back(std::move(tensor));
    if (tensors.size() > 1) continue;
    for (const auto& [name, values] : factors)
      tensors.push_back({name, GgufType::kF32, {static_cast<int64_t>(values.size())}});
  }
  return tensors;
}

absl::Status CheckGgufTensors(const GgufHeader& header, const GgufLayout& layout) {
  size_t found = 0;
  for (size_t i = 0; i < layout.table.stored.size(); ++i) {
    const WeightTable::Stored& want = layout.table.stored[i];
    if (const GgufLayout::Extra& extra = layout.extras[i]; !extra.key.empty()) {
      if (FindGgufNumber(header, extra) == nullptr)
        return Error(ExitCode::kData, "gguf ", header.origin(), ": ", extra.key, " has no number for layer ",
                     extra.element);
      continue;
    }
    const GgufTensor* tensor = header.FindTensor(want.name);
    if (tensor == nullptr)
      return Error(ExitCode::kData, "gguf ", header.origin(), ": has no tensor ", want.name,
                   "; it is not a whole model");
    if (Trimmed(tensor->shape) != Trimmed(want.label))
      return Error(ExitCode::kData, "gguf ", header.origin(), ": tensor ", want.name, " is ", ShapeText(tensor->shape),
                   " where its metadata says ", ShapeText(want.label));
    ++found;
  }
  const auto is_factor = [](const std::string& name) {
    return name == kGgufRopeFactors || name == kGgufLongFactors || name == kGgufShortFactors;
  };
  for (const GgufTensor& tensor : header.tensors()) found += is_factor(tensor.name) ? 1 : 0;
  if (found == header.tensors().size()) return absl::OkStatus();
  std::vector<std::string> known;
  for (const WeightTable::Stored& want : layout.table.stored) known.push_back(want.name);
  std::sort(known.begin(), known.end());
  for (const GgufTensor& tensor : header.tensors()) {
    if (!is_factor(tensor.name) && !std::binary_search(known.begin(), known.end(), tensor.name))
      return Error(ExitCode::kData, "gguf ", header.origin(), ": tensor ", tensor.name,
                   " belongs to no model of architecture ", layout.architecture->name);
  }
  TRIREME_CHECK(false, "a tensor too many in ", header.origin());
}

const float* FindGgufNumber(const GgufHeader& header, const GgufLayout::Extra& extra) {
  const GgufValue* value = header.Find(extra.key);
  const auto* array = value != nullptr ? std::get_if<GgufArray>(value) : nullptr;
  const auto* numbers = array != nullptr ? std::get_if<std::vector<float>>(array) : nullptr;
  const bool there = numbers != nullptr && extra.element < static_cast<int64_t>(numbers->size());
  return there ? &(*numbers)[static_cast<size_t>(extra.element)] : nullptr;
}

int64_t PairedRow(int64_t own_row, int64_t head_dim) {
  const int64_t in_head = own_row % head_dim, half = head_dim / 2;
  return own_row - in_head + in_head % half * 2 + in_head / half;
}

int64_t OwnRow(int64_t paired_row, int64_t head_dim) {
  const int64_t in_head = paired_row % head_dim, half = head_dim / 2;
  return paired_row - in_head + in_head % 2 * half + in_head / 2;
}

std::optional<size_t> GgufTensorOf(const GgufLayout& layout, const std::string& parameter) {
  const std::vector<WeightTable::Parameter>& parameters = layout.table.parameters;
  const auto found =
      std::find_if(parameters.begin(), parameters.end(), [&](const auto& one) { return one.name == parameter; });
  if (found == parameters.end()) return std::nullopt;
  const size_t stored = found->runs[0].stored;
  const std::vector<RowRun>& runs = layout.table.stored[stored].runs;
  const bool alone = found->runs.size() == 1 && runs.size() == 1 && layout.table.stored[stored].label.size() <= 2;
  return alone ? std::optional<size_t>(stored) : std::nullopt;
}

}  // namespace trireme
