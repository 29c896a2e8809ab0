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

DecoderSpec SpecifyGemma(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftGemma(config, problems).Build(problems);
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
  draft.UseLocalRotation(config.rope_local_base_freq());
  return draft.Build(problems);
}

// Old files say gelu and mean the tanh formula.
void ReadGemmaActivation(JsonReader& reader, HfConfig*) {
  reader.Require("use_bidirectional_attention", false, "is not supported");
  constexpr char kTanh[] = "gelu_pytorch_tanh";
  for (const char* key : {"hidden_act", "hidden_activation"}) {
    if (reader.Text(key) != "gelu") reader.Require(key, kTanh, "is not supported; \"gelu_pytorch_tanh\" is");
  }
}

}  // namespace

ModelFamily GemmaFamily() {
  return {"gemma",
          &SpecifyGemma,
          {},
          {{.model_type = "gemma",
            .architecture = "GemmaForCausalLM",
            .family = "gemma",
            .max_position_embeddings = 8192,
            .num_key_value_heads = 16,
            .head_dim = 256,
            .tied = true,
            .attention_bias = true,
            .elsewhere = {"hidden_act"},
            .read_more = &ReadGemmaActivation,
            .write_more = [](const ModelConfig&, nlohmann::ordered_json* json) {
              (*json)["hidden_act"] = "gelu_pytorch_tanh";
            }}}};
}
ModelFamily Gemma2Family() { return {"gemma2", &SpecifyGemma2}; }
ModelFamily Gemma3Family() { return {"gemma3_text", &SpecifyGemma3}; }

}  // namespace trireme
