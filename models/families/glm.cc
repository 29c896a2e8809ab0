#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderDraft DraftGlm(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  RotatePartly(config, 0.5, &draft, problems);
  draft.rotation.interleaved = true;
  draft.attention.qkv_bias = config.attention_bias();
  draft.attention.output_bias = false;
  return draft;
}

DecoderSpec SpecifyGlm(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftGlm(config, problems).Build(problems);
}

DecoderSpec SpecifyGlm4(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGlm(config, problems);
  draft.block.norm_after = true;
  return draft.Build(problems);
}

HfModelType GlmType(const char* type, const char* architecture) {
  return {.model_type = type,
          .architecture = architecture,
          .family = type,
          .max_position_embeddings = 131072,
          .num_key_value_heads = 2,
          .head_dim = 128,
          .partial_rotary = 0.5,
          .rms_norm_eps = 1.5625e-7,
          .keys = {{"attention_bias", true}},
          .dropouts = {"attention_dropout"}};
}

}  // namespace

// GLM-4-9B (arXiv 2406.12793).
ModelFamily GlmFamily() { return {"glm", &SpecifyGlm, {.rules = FusedGateUp()}, {GlmType("glm", "GlmForCausalLM")}}; }

// GLM-4-0414: norms after, too.
ModelFamily Glm4Family() {
  WeightNames names = {.rules = FusedGateUp()};
  names.rules.insert(
      names.rules.end(),
      {{"model.layers.*.post_attention_layernorm.weight", "model.layers.*.post_self_attn_layernorm.weight"},
       {"model.layers.*.pre_feedforward_layernorm.weight", "model.layers.*.post_attention_layernorm.weight"},
       {"model.layers.*.post_feedforward_layernorm.weight", "model.layers.*.post_mlp_layernorm.weight"}});
  return {"glm4", &SpecifyGlm4, names, {GlmType("glm4", "Glm4ForCausalLM")}};
}

}  // namespace trireme
