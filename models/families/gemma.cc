#include <cmath>

#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyGemma(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyDecoder(config, problems);
  const double scalar = config.has_query_pre_attn_scalar() ? config.query_pre_attn_scalar() : spec.head_dim;
  const auto not_negative = [&](const char* field, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      problems->push_back(absl::StrCat("model.", field, ": is ", value, "; give a positive number or 0"));
  };
  if (!(scalar > 0) || !std::isfinite(scalar))
    problems->push_back(absl::StrCat("model.query_pre_attn_scalar: is ", scalar, "; give a positive number"));
  not_negative("attn_logit_softcapping", config.attn_logit_softcapping());
  not_negative("final_logit_softcapping", config.final_logit_softcapping());
  spec.norm_offset = spec.post_norms = true;
  spec.activation = Activation::kGeluTanh;
  spec.attention_scale = 1 / std::sqrt(scalar);
  spec.attention_softcap = config.attn_logit_softcapping();
  spec.final_logit_softcap = config.final_logit_softcapping();
  spec.embedding_scale = std::sqrt(static_cast<double>(spec.hidden_size));
  return spec;
}

DecoderSpec SpecifyGemma3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyGemma(config, problems);
  if (!(config.rope_local_base_freq() > 0) || !std::isfinite(config.rope_local_base_freq()))
    problems->push_back(
        absl::StrCat("model.rope_local_base_freq: is ", config.rope_local_base_freq(), "; give a positive number"));
  spec.qk_norm = true;
  spec.local_rope_theta = config.rope_local_base_freq();
  if (spec.pattern.empty()) spec.pattern.assign(static_cast<size_t>(spec.num_layers), {spec.sliding_window});
  for (LayerPattern& layer : spec.pattern) layer.local = layer.window > 0;
  return spec;
}

}  // namespace

ModelFamily Gemma2Family() { return {"gemma2", &SpecifyGemma}; }
ModelFamily Gemma3Family() { return {"gemma3_text", &SpecifyGemma3}; }

}  // namespace trireme
