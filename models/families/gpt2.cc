#include <cmath>

#include "models/families/gpt.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyGpt2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGpt(config, "gelu_new", problems);
  draft.spec.embedding.positions = true;
  draft.attention.qkv_bias = draft.attention.output_bias = true;
  draft.spec.scaled_residual_init = !config.has_scaled_residual_init() || config.scaled_residual_init();
  for (LayerPattern& layer : draft.pattern) layer.rope = false;
  if (config.scale_attn_by_inverse_layer_idx()) {
    draft.vary = [](int64_t layer, AttentionSettings* attention) {
      attention->scale = 1 / std::sqrt(static_cast<double>(attention->head_dim)) / static_cast<double>(layer + 1);
    };
  }
  return draft.Build(problems);
}

constexpr char kGpt2Qkv[] = "transformer.h.*.attn.c_attn.weight", kGpt2QkvBias[] = "transformer.h.*.attn.c_attn.bias";

// Transformers' Conv1D keeps matrices as [inputs, outputs].
WeightNames Gpt2Names() {
  const auto qkv = [](const char* name, const char* stored, int part) {
    return WeightRule{.name = name, .stored = stored, .transposed = true, .part = part, .parts = 3};
  };
  return {
      .rules = {{"model.embed_tokens.weight", "transformer.wte.weight"},
                {"model.embed_positions.weight", "transformer.wpe.weight"},
                {"model.layers.*.input_layernorm.weight", "transformer.h.*.ln_1.weight"},
                {"model.layers.*.input_layernorm.bias", "transformer.h.*.ln_1.bias"},
                qkv("model.layers.*.self_attn.q_proj.weight", kGpt2Qkv, 0),
                qkv("model.layers.*.self_attn.k_proj.weight", kGpt2Qkv, 1),
                qkv("model.layers.*.self_attn.v_proj.weight", kGpt2Qkv, 2),
                qkv("model.layers.*.self_attn.q_proj.bias", kGpt2QkvBias, 0),
                qkv("model.layers.*.self_attn.k_proj.bias", kGpt2QkvBias, 1),
                qkv("model.layers.*.self_attn.v_proj.bias", kGpt2QkvBias, 2),
                {"model.layers.*.self_attn.o_proj.weight", "transformer.h.*.attn.c_proj.weight", true},
                {"model.layers.*.self_attn.o_proj.bias", "transformer.h.*.attn.c_proj.bias"},
                {"model.layers.*.post_attention_layernorm.weight", "transformer.h.*.ln_2.weight"},
                {"model.layers.*.post_attention_layernorm.bias", "transformer.h.*.ln_2.bias"},
                {"model.layers.*.mlp.up_proj.weight", "transformer.h.*.mlp.c_fc.weight", true},
                {"model.layers.*.mlp.up_proj.bias", "transformer.h.*.mlp.c_fc.bias"},
                {"model.layers.*.mlp.down_proj.weight", "transformer.h.*.mlp.c_proj.weight", true},
                {"model.layers.*.mlp.down_proj.bias", "transformer.h.*.mlp.c_proj.bias"},
                {"model.norm.weight", "transformer.ln_f.weight"},
                {"model.norm.bias", "transformer.ln_f.bias"},
                {"lm_head.weight", "lm_head.weight"}},
      .optional_prefix = "transformer.",
      .ignored = {".attn.bias", ".attn.masked_bias"},  // causal masks
  };
}

}  // namespace

ModelFamily Gpt2Family() { return {"gpt2", &SpecifyGpt2, Gpt2Names()}; }

}  // namespace trireme
