#include "models/families/granite.h"

#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {

DecoderDraft DraftGranite(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  CheckPositive("embedding_multiplier", config.embedding_multiplier(), /*zero_too=*/false, problems);
  CheckPositive("residual_multiplier", config.residual_multiplier(), /*zero_too=*/false, problems);
  CheckPositive("attention_multiplier", config.attention_multiplier(), /*zero_too=*/false, problems);
  CheckPositive("logits_scaling", config.logits_scaling(), /*zero_too=*/false, problems);
  draft.spec.embedding.scale = config.embedding_multiplier();
  draft.block.residual_multiplier = config.residual_multiplier();
  draft.attention.scale = config.attention_multiplier();
  draft.spec.head.scale = 1 / config.logits_scaling();
  return draft;
}

HfModelType GraniteType(const char* type, const char* architecture) {
  return {.model_type = type,
          .architecture = architecture,
          .family = type,
          .max_position_embeddings = 2048,
          .own_head_dim = false,
          .attention_bias = true,
          .keys = {{"embedding_multiplier", 1.0},
                   {"residual_multiplier", 1.0},
                   {"attention_multiplier", 1.0},
                   {"logits_scaling", 1.0}}};
}

namespace {

DecoderSpec SpecifyGranite(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftGranite(config, problems).Build(problems);
}

}  // namespace

// Granite 3 and 4 (github.com/ibm-granite): four multipliers.
ModelFamily GraniteFamily() {
  HfModelType type = GraniteType("granite", "GraniteForCausalLM");
  type.keys.push_back({"mlp_bias", false});
  return {"granite", &SpecifyGranite, {}, {type}};
}

}  // namespace trireme
