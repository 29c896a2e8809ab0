#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderDraft DraftCohere(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  CheckPositive("logit_scale", config.logit_scale(), /*zero_too=*/false, problems);
  UseLayerNorm(config, /*bias=*/false, &draft, problems);
  draft.block.parallel = draft.block.shared_norm = true;
  draft.rotation.interleaved = true;
  draft.spec.head.scale = config.logit_scale();
  return draft;
}

DecoderSpec SpecifyCohere(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftCohere(config, problems);
  if (config.use_qk_norm())
    draft.attention.head_norm = HeadNormSpec{.extent = HeadNormSpec::kEachHead, .norm = draft.block.norm};
  return draft.Build(problems);
}

// Only layers with a window rotate.
DecoderSpec SpecifyCohere2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftCohere(config, problems);
  for (LayerPattern& layer : draft.pattern) layer.rope = layer.window > 0;
  return draft.Build(problems);
}

HfModelType CohereType(const char* type, const char* architecture) {
  return {.model_type = type,
          .architecture = architecture,
          .family = type,
          .max_position_embeddings = 8192,
          .own_head_dim = false,
          .tied = true,
          .rope_theta = 500000,
          .attention_bias = true,
          .rms_norm_eps = 0,
          .keys = {{"layer_norm_eps", 1e-05}, {"logit_scale", 0.0625}}};
}

}  // namespace

// Command R and R+.
ModelFamily CohereFamily() {
  HfModelType type = CohereType("cohere", "CohereForCausalLM");
  type.keys.push_back({"use_qk_norm", false});
  return {"cohere",
          &SpecifyCohere,
          {.rules = {{.name = "model.layers.*.self_attn.q_norm.weight",
                      .stored = "model.layers.*.self_attn.q_norm.weight",
                      .by_heads = true},
                     {.name = "model.layers.*.self_attn.k_norm.weight",
                      .stored = "model.layers.*.self_attn.k_norm.weight",
                      .by_heads = true}}},
          {type}};
}

// Command R7B and A.
ModelFamily Cohere2Family() {
  HfModelType type = CohereType("cohere2", "Cohere2ForCausalLM");
  type.windows = HfWindows::kPattern;
  type.sliding_window = 4096;
  type.window_period = 4;
  type.own_period = true;
  return {"cohere2", &SpecifyCohere2, {}, {type}};
}

}  // namespace trireme
