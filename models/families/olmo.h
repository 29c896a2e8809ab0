// models/families/olmo.h
// What OLMo's dense models and mixtures share.
#ifndef TRIREME_MODELS_FAMILIES_OLMO_H_
#define TRIREME_MODELS_FAMILIES_OLMO_H_

#include "models/formats/hf/hf_config.h"

namespace trireme {

// The key clip_qkv, null where nothing is cut.
void ReadClip(JsonReader& reader, HfConfig* config);
void WriteClip(const ModelConfig& model, nlohmann::ordered_json* json);

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILIES_OLMO_H_
