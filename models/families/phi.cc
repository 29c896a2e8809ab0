#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyPhi(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  RotatePartly(config, 0.5, &draft, problems);
  draft.block.parallel = draft.block.shared_norm = true;
  draft.attention.qkv_bias = draft.attention.output_bias = true;
  if (config.use_qk_norm()) draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  draft.feed_forward.gated = false;
  draft.feed_forward.bias = draft.spec.head.bias = true;
  draft.feed_forward.activation = ActivationOf(config, "gelu_new", problems);
  return draft.Build(problems);
}

DecoderSpec SpecifyPhi3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  RotatePartly(config, 1, &draft, problems);
  return draft.Build(problems);
}

WeightNames PhiNames() {
  return {.rules = {{"model.layers.*.self_attn.o_proj.weight", "model.layers.*.self_attn.dense.weight"},
                    {"model.layers.*.self_attn.o_proj.bias", "model.layers.*.self_attn.dense.bias"},
                    {"model.layers.*.self_attn.q_norm.weight", "model.layers.*.self_attn.q_layernorm.weight"},
                    {"model.layers.*.self_attn.q_norm.bias", "model.layers.*.self_attn.q_layernorm.bias"},
                    {"model.layers.*.self_attn.k_norm.weight", "model.layers.*.self_attn.k_layernorm.weight"},
                    {"model.layers.*.self_attn.k_norm.bias", "model.layers.*.self_attn.k_layernorm.bias"},
                    {"model.layers.*.mlp.up_proj.weight", "model.layers.*.mlp.fc1.weight"},
                    {"model.layers.*.mlp.up_proj.bias", "model.layers.*.mlp.fc1.bias"},
                    {"model.layers.*.mlp.down_proj.weight", "model.layers.*.mlp.fc2.weight"},
                    {"model.layers.*.mlp.down_proj.bias", "model.layers.*.mlp.fc2.bias"},
                    {"model.norm.weight", "model.final_layernorm.weight"},
                    {"model.norm.bias", "model.final_layernorm.bias"}}};
}

WeightNames Phi3Names() {
  WeightNames names;
  names.rules = Fused("model.layers.*.self_attn.qkv_proj.weight",
                      {"model.layers.*.self_attn.q_proj.weight", "model.layers.*.self_attn.k_proj.weight",
                       "model.layers.*.self_attn.v_proj.weight"});
  for (const WeightRule& rule : FusedGateUp()) names.rules.push_back(rule);
  return names;
}

}  // namespace

// Phi-1, 1.5 and 2 (arXiv 2306.11644).
ModelFamily PhiFamily() {
  return {"phi",
          &SpecifyPhi,
          PhiNames(),
          {{.model_type = "phi",
            .architecture = "PhiForCausalLM",
            .family = "phi",
            .max_position_embeddings = 2048,
            .own_head_dim = false,
            .partial_rotary = 0.5,
            .rms_norm_eps = 0,
            .keys = {{"layer_norm_eps", 1e-05}, {"hidden_act", "gelu_new"}, {"qk_layernorm", false, "use_qk_norm"}},
            .dropouts = {"resid_pdrop", "embd_pdrop", "attention_dropout"}}}};
}

// Phi-3, 3.5 and 4 (arXiv 2404.14219).
ModelFamily Phi3Family() {
  return {"phi3",
          &SpecifyPhi3,
          Phi3Names(),
          {{.model_type = "phi3",
            .architecture = "Phi3ForCausalLM",
            .family = "phi3",
            .max_position_embeddings = 4096,
            .own_head_dim = false,
            .windows = HfWindows::kAll,
            .partial_rotary = 1,
            .original_context = 4096,
            .rms_norm_eps = 1e-5,
            .dropouts = {"resid_pdrop", "embd_pdrop", "attention_dropout"}}}};
}

}  // namespace trireme
