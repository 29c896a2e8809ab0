// trainer/import.h
// Models of other software as the start of a run.
#ifndef TRIREME_TRAINER_IMPORT_H_
#define TRIREME_TRAINER_IMPORT_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launch/file.h"
#include "parallel/comm/mesh.h"
#include "trainer/model.h"
#include "trainer/sharded_tensors.h"

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

// Fills the weights of `model` at the start of a run: from model.from, a directory (converted from F32, BF16 or F16) or
// a GGUF file (of any type that GgufDequantize knows), else from the seed; those of adapters from adapter.from or the
// seed. resumed: only those that the checkpoint did not bring, since they are not trained. Each rank maps the files and
// touches only its own rectangles. Missing and unexpected tensors are one error that lists them. Collective; errors are
// agreed.
absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Model& model, bool resumed);

}  // namespace trireme

#endif  // TRIREME_TRAINER_IMPORT_H_
