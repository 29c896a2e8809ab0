#include "models/families/gpt.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyGptNeox(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGpt(config, "gelu", problems);
  draft.block.parallel = config.use_parallel_residual();
  draft.attention.qkv_bias = draft.attention.output_bias = !config.has_attention_bias() || config.attention_bias();
  RotatePartly(config, 0.25, &draft, problems);
  draft.rotation.padded_to = draft.attention.head_dim;
  draft.spec.reordered_rotary_dims = draft.rotation.dims;
  return draft.Build(problems);
}

constexpr char kGptNeoxQkv[] = "gpt_neox.layers.*.attention.query_key_value.weight",
               kGptNeoxQkvBias[] = "gpt_neox.layers.*.attention.query_key_value.bias";

WeightNames GptNeoxNames() {
  const auto qkv = [](const char* name, const char* stored, int part) {
    return WeightRule{
        .name = name, .stored = stored, .part = part, .parts = 3, .per_group = true, .rotary_order = part < 2};
  };
  return {
      .rules = {{"model.embed_tokens.weight", "gpt_neox.embed_in.weight"},
                {"model.layers.*.input_layernorm.weight", "gpt_neox.layers.*.input_layernorm.weight"},
                {"model.layers.*.input_layernorm.bias", "gpt_neox.layers.*.input_layernorm.bias"},
                qkv("model.layers.*.self_attn.q_proj.weight", kGptNeoxQkv, 0),
                qkv("model.layers.*.self_attn.k_proj.weight", kGptNeoxQkv, 1),
                qkv("model.layers.*.self_attn.v_proj.weight", kGptNeoxQkv, 2),
                qkv("model.layers.*.self_attn.q_proj.bias", kGptNeoxQkvBias, 0),
                qkv("model.layers.*.self_attn.k_proj.bias", kGptNeoxQkvBias, 1),
                qkv("model.layers.*.self_attn.v_proj.bias", kGptNeoxQkvBias, 2),
                {"model.layers.*.self_attn.o_proj.weight", "gpt_neox.layers.*.attention.dense.weight"},
                {"model.layers.*.self_attn.o_proj.bias", "gpt_neox.layers.*.attention.dense.bias"},
                {"model.layers.*.post_attention_layernorm.weight", "gpt_neox.layers.*.post_attention_layernorm.weight"},
                {"model.layers.*.post_attention_layernorm.bias", "gpt_neox.layers.*.post_attention_layernorm.bias"},
                {"model.layers.*.mlp.up_proj.weight", "gpt_neox.layers.*.mlp.dense_h_to_4h.weight"},
                {"model.layers.*.mlp.up_proj.bias", "gpt_neox.layers.*.mlp.dense_h_to_4h.bias"},
                {"model.layers.*.mlp.down_proj.weight", "gpt_neox.layers.*.mlp.dense_4h_to_h.weight"},
                {"model.layers.*.mlp.down_proj.bias", "gpt_neox.layers.*.mlp.dense_4h_to_h.bias"},
                {"model.norm.weight", "gpt_neox.final_layer_norm.weight"},
                {"model.norm.bias", "gpt_neox.final_layer_norm.bias"},
                {"lm_head.weight", "embed_out.weight"}},
      // Causal masks and rotary frequencies of old files.
      .ignored = {".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"},
  };
}

}  // namespace

ModelFamily GptNeoxFamily() { return {"gpt_neox", &SpecifyGptNeox, GptNeoxNames()}; }

}  // namespace trireme
