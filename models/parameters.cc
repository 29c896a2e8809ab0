#include "models/parameters.h"

#include <cmath>

namespace trireme {
namespace {

ParameterSpec Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation, Placement placement) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {rows, columns};
  spec.standard_deviation = deviation;
  spec.placement = placement;
  return spec;
}

ParameterSpec Vector(const std::string& name, int64_t width, Initialization initialization,
                     Placement placement = Placement::kReplicated) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {width};
  spec.initialization = initialization;
  spec.decay = false;
  spec.placement = placement;
  return spec;
}

ParameterSpec NormWeight(const DecoderSpec& s, const std::string& name, int64_t width) {
  return Vector(name, width, s.norm_offset ? Initialization::kZeros : Initialization::kOnes);
}

ParameterSpec Fused(ParameterSpec spec, int64_t heads = 0) {
  spec.heads = heads;
  spec.fused_with_previous = true;
  return spec;
}

}  // namespace

std::vector<ParameterSpec> EmbeddingParameters(const DecoderSpec& s) {
  return {Matrix(absl::StrCat(kEmbeddingName, ".weight"), s.vocab_size, s.hidden_size, s.initializer_range,
                 Placement::kVocabulary)};
}

std::vector<ParameterSpec> PositionParameters(const DecoderSpec& s) {
  if (!s.learned_positions) return {};
  return {Matrix(absl::StrCat(kPositionsName, ".weight"), s.max_positions, s.hidden_size, s.initializer_range,
                 Placement::kReplicated)};
}

std::vector<ParameterSpec> HeadParameters(const DecoderSpec& s) {
  std::vector<ParameterSpec> head = {NormWeight(s, "model.norm.weight", s.hidden_size)};
  if (s.gpt_block) head.push_back(Vector("model.norm.bias", s.hidden_size, Initialization::kZeros));
  if (!s.tied_embeddings)
    head.push_back(Matrix("lm_head.weight", s.vocab_size, s.hidden_size, s.initializer_range, Placement::kVocabulary));
  return head;
}

BlockParameters MakeBlockParameters(const DecoderSpec& s, int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, "."), attention = prefix + "self_attn.";
  const int64_t h = s.hidden_size, q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
  const int64_t f = s.intermediate_size;
  const double deviation = s.initializer_range;
  const double residual =
      s.scaled_residual_init ? deviation / std::sqrt(2.0 * static_cast<double>(s.num_layers)) : deviation;
  constexpr Placement kRows = Placement::kRows, kColumns = Placement::kColumns;
  BlockParameters block;
  const auto add = [&](ParameterSpec spec) {
    block.parameters.push_back(std::move(spec));
    return static_cast<int>(block.parameters.size()) - 1;
  };
  const auto norm = [&](const char* name) { return add(NormWeight(s, prefix + name, h)); };
  const auto norm_bias = [&](const char* name) { return add(Vector(prefix + name, h, Initialization::kZeros)); };

  block.input_norm = norm("input_layernorm.weight");
  if (s.gpt_block) block.input_norm_bias = norm_bias("input_layernorm.bias");
  block.q = add(Matrix(attention + "q_proj.weight", q, h, deviation, kRows));
  add(Fused(Matrix(attention + "k_proj.weight", kv, h, deviation, kRows), s.num_kv_heads));
  add(Fused(Matrix(attention + "v_proj.weight", kv, h, deviation, kRows), s.num_kv_heads));
  if (s.qkv_bias) {
    block.q_bias = add(Vector(attention + "q_proj.bias", q, Initialization::kZeros, kRows));
    add(Fused(Vector(attention + "k_proj.bias", kv, Initialization::kZeros, kRows), s.num_kv_heads));
    add(Fused(Vector(attention + "v_proj.bias", kv, Initialization::kZeros, kRows), s.num_kv_heads));
  }
  if (s.qk_norm) {
    block.q_norm = add(NormWeight(s, attention + "q_norm.weight", s.head_dim));
    block.k_norm = add(NormWeight(s, attention + "k_norm.weight", s.head_dim));
  }
  block.o = add(Matrix(attention + "o_proj.weight", h, q, residual, kColumns));
  if (s.output_bias) block.o_bias = add(Vector(attention + "o_proj.bias", h, Initialization::kZeros));
  if (s.post_norms) {
    block.post_attention_norm = norm("post_attention_layernorm.weight");
    block.mlp_norm = norm("pre_feedforward_layernorm.weight");
  } else {
    block.mlp_norm = norm("post_attention_layernorm.weight");
  }
  if (s.gpt_block) {
    block.mlp_norm_bias = norm_bias("post_attention_layernorm.bias");
    block.up = add(Matrix(prefix + "mlp.up_proj.weight", f, h, deviation, kRows));
    block.up_bias = add(Vector(prefix + "mlp.up_proj.bias", f, Initialization::kZeros, kRows));
    block.down = add(Matrix(prefix + "mlp.down_proj.weight", h, f, residual, kColumns));
    block.down_bias = add(Vector(prefix + "mlp.down_proj.bias", h, Initialization::kZeros));
    return block;
  }
  block.gate = add(Matrix(prefix + "mlp.gate_proj.weight", f, h, deviation, kRows));
  add(Fused(Matrix(prefix + "mlp.up_proj.weight", f, h, deviation, kRows)));
  block.down = add(Matrix(prefix + "mlp.down_proj.weight", h, f, residual, kColumns));
  if (s.post_norms) block.post_mlp_norm = norm("post_feedforward_layernorm.weight");
  return block;
}

std::vector<std::vector<ParameterSpec>> UnitParameters(const DecoderSpec& spec) {
  std::vector<std::vector<ParameterSpec>> units = {EmbeddingParameters(spec)};
  for (ParameterSpec& positions : PositionParameters(spec)) units[0].push_back(std::move(positions));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer)
    units.push_back(MakeBlockParameters(spec, layer).parameters);
  units.push_back(HeadParameters(spec));
  return units;
}

std::vector<ParameterSpec> DecoderParameters(const DecoderSpec& spec) {
  std::vector<ParameterSpec> all;
  for (const std::vector<ParameterSpec>& unit : UnitParameters(spec)) all.insert(all.end(), unit.begin(), unit.end());
  return all;
}

int64_t NumParameters(const DecoderSpec& spec) {
  int64_t total = 0;
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    int64_t n = 1;
    for (const int64_t extent : parameter.shape) n *= extent;
    total += n;
  }
  return total;
}

}  // namespace trireme
