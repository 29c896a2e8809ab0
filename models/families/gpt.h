// models/families/gpt.h
// What GPT-2 and GPT-NeoX share.
#ifndef TRIREME_MODELS_FAMILIES_GPT_H_
#define TRIREME_MODELS_FAMILIES_GPT_H_

#include <string>
#include <vector>

#include "models/parts/draft.h"

namespace trireme {

// LayerNorms with biases, an MLP of two projections with biases. activation: hidden_act where the configuration is
// silent.
DecoderDraft DraftGpt(const ModelConfig& config, const std::string& activation, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILIES_GPT_H_
