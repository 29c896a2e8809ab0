// What a model on disk is, for people.
#ifndef TRIREME_TRAINER_EXPORT_INSPECT_MODEL_H_
#define TRIREME_TRAINER_EXPORT_INSPECT_MODEL_H_

#include <ostream>
#include <string>
#include <vector>

#include "launch/base/status.h"
#include "models/spec/family.h"

namespace trireme {

// Whether `path` is a run_dir, a checkpoint's step folder, a Hugging Face directory (or ORG/NAME of one in the cache)
// or a GGUF file, damaged or not.
bool LooksLikeModel(const std::string& path);

// Prints architecture, number of tensors, parameters, dtypes, size and tokenizer; of a model that could not be
// imported, too, with the reason. Weights are not read.
absl::Status InspectModel(const std::string& path, const std::vector<ModelFamily>& families, std::ostream& out);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_INSPECT_MODEL_H_
