#include "models/families/olmo.h"

#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {

void ReadClip(JsonReader& reader, HfConfig* config) {
  if (const std::optional<double> clip = reader.Number("clip_qkv")) config->model.set_clip_qkv(*clip);
}

void WriteClip(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["clip_qkv"] = model.clip_qkv() > 0 ? nlohmann::json(model.clip_qkv()) : nlohmann::json();
}

namespace {

DecoderSpec SpecifyOlmo(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  CheckPositive("clip_qkv", config.clip_qkv(), /*zero_too=*/true, problems);
  draft.EachNorm([](NormSpec* norm) { *norm = {.kind = NormSpec::kLayer, .weight = false}; });
  draft.attention.clip = config.clip_qkv();
  return draft.Build(problems);
}

DecoderDraft DraftOlmo2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.block.norm_before = false;
  draft.block.norm_after = true;
  draft.attention.head_norm = HeadNormSpec{.extent = HeadNormSpec::kAllHeads, .norm = draft.block.norm};
  return draft;
}

DecoderSpec SpecifyOlmo2(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftOlmo2(config, problems).Build(problems);
}

// Only layers that see everything have rescaled frequencies.
DecoderSpec SpecifyOlmo3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftOlmo2(config, problems);
  draft.UseLocalRotation(config.has_rope_local_base_freq() ? config.rope_local_base_freq() : draft.rotation.theta);
  return draft.Build(problems);
}

HfModelType OlmoType(const char* type, const char* architecture) {
  return {.model_type = type,
          .architecture = architecture,
          .family = type,
          .max_position_embeddings = 2048,
          .own_head_dim = false,
          .attention_bias = true,
          .rms_norm_eps = 1e-5};
}

}  // namespace

// arXiv 2402.00838: norms without parameters.
ModelFamily OlmoFamily() {
  HfModelType type = OlmoType("olmo", "OlmoForCausalLM");
  type.rms_norm_eps = 0;
  type.read_more = &ReadClip;
  type.write_more = &WriteClip;
  return {"olmo", &SpecifyOlmo, {}, {type}};
}

// arXiv 2501.00656: norms after, not before; queries and keys normed over all heads at once.
ModelFamily Olmo2Family() { return {"olmo2", &SpecifyOlmo2, {}, {OlmoType("olmo2", "Olmo2ForCausalLM")}}; }

// And windows.
ModelFamily Olmo3Family() {
  HfModelType type = OlmoType("olmo3", "Olmo3ForCausalLM");
  type.windows = HfWindows::kPattern;
  type.sliding_window = 4096;
  type.window_period = 4;
  type.rope_theta = type.local_rope_theta = 500000;
  return {"olmo3", &SpecifyOlmo3, {}, {type}};
}

}  // namespace trireme
