// models/source/model_config.h
// What a config says of a model that other files describe, and how one such model is told from another.
#ifndef TRIREME_MODELS_SOURCE_MODEL_CONFIG_H_
#define TRIREME_MODELS_SOURCE_MODEL_CONFIG_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "launch/base/file.h"
#include "launch/base/status.h"
#include "models/spec/family.h"

namespace trireme {

// Sets what the config.json of model.from or model.config, or the GGUF file model.from, says; nothing when neither is
// set. config.json is of a model type of `families`. What does not fit is appended to `problems`. Returns the keys that
// were ignored, as a sentence for the log, or "". Not collective.
std::string ResolveModelConfig(const std::vector<ModelFamily>& families, ModelConfig* model,
                               std::vector<std::string>* problems);

// Tells the files of one model.from from another's: digests of config.json and of samples of each file of weights.
absl::StatusOr<Digest> IdentifyModel(const std::string& from);

// Tells one adapter.from from another: of a PEFT directory its settings and samples of its weights, of a run's
// checkpoint its manifest, which has the digests of all its files.
absl::StatusOr<Digest> IdentifyAdapter(const std::string& from);

}  // namespace trireme

#endif  // TRIREME_MODELS_SOURCE_MODEL_CONFIG_H_
