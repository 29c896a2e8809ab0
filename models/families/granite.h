// models/families/granite.h
// What Granite's dense models and mixtures share.
#ifndef TRIREME_MODELS_FAMILIES_GRANITE_H_
#define TRIREME_MODELS_FAMILIES_GRANITE_H_

#include <string>
#include <vector>

#include "models/formats/hf/hf_model_type.h"
#include "models/parts/draft.h"

namespace trireme {

// Llama's decoder with four multipliers.
DecoderDraft DraftGranite(const ModelConfig& config, std::vector<std::string>* problems);

// The type of both, whose keys are the multipliers.
HfModelType GraniteType(const char* type, const char* architecture);

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILIES_GRANITE_H_
