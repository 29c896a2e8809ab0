// models/families/gpt.h
// What GPT-2 and GPT-NeoX share.
#ifndef TRIREME_MODELS_FAMILIES_GPT_H_
#define TRIREME_MODELS_FAMILIES_GPT_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/spec/decoder_spec.h"

namespace trireme {

// SpecifyDecoder with GPT's blocks. activation: hidden_act where the configuration is silent.
DecoderSpec SpecifyGpt(const ModelConfig& config, const std::string& activation, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILIES_GPT_H_
