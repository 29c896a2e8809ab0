#include <cmath>

#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderDraft DraftGemma(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.EachNorm([](NormSpec* norm) { norm->offset = 1; });
  draft.feed_forward.activation = Activation::kGeluTanh;
  draft.spec.embedding.scale = std::sqrt(static_cast<double>(draft.spec.hidden_size));
  return draft;
}

DecoderDraft DraftGemma2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGemma(config, problems);
  const double scalar = config.has_query_pre_attn_scalar() ? config.query_pre_attn_scalar() : draft.attention.head_dim;
  CheckPositive("query_pre_attn_scalar", scalar, /*zero_too=*/false, problems);
  CheckPositive("attn_logit_softcapping", config.attn_logit_softcapping(), /*zero_too=*/true, problems);
  CheckPositive("final_logit_softcapping", config.final_logit_softcapping(), /*zero_too=*/true, problems);
  draft.block.norm_after = true;
  draft.attention.scale = 1 / std::sqrt(scalar);
  draft.attention.softcap = config.attn_logit_softcapping();
  draft.spec.head.softcap = config.final_logit_softcapping();
  return draft;
}

DecoderSpec SpecifyGemma2(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftGemma2(config, problems).Build(problems);
}

DecoderSpec SpecifyGemma3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGemma2(config, problems);
  CheckPositive("rope_local_base_freq", config.rope_local_base_freq(), /*zero_too=*/false, problems);
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  draft.local_rotation = draft.rotation;
  draft.local_rotation.theta = config.rope_local_base_freq();
  draft.local_rotation.scaling.reset();
  for (LayerPattern& layer : draft.pattern) layer.local = layer.window > 0;
  return draft.Build(problems);
}

}  // namespace

ModelFamily Gemma2Family() { return {"gemma2", &SpecifyGemma2}; }
ModelFamily Gemma3Family() { return {"gemma3_text", &SpecifyGemma3}; }

}  // namespace trireme
