// trainer/import.h
// Models of other software as the start of a run.
#ifndef TRIREME_TRAINER_IMPORT_H_
#define TRIREME_TRAINER_IMPORT_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "models/decoder_spec.h"
#include "models/formats/gguf_model.h"
#include "models/formats/hf_directory.h"
#include "parallel/comm/mesh.h"
#include "trainer/model.h"
#include "trainer/sharded_tensors.h"

namespace trireme {

// Sets what the config.json of model.from or model.config, or the GGUF file model.from, says; nothing when neither is
// set. What does not fit is appended to `problems`. Returns the keys that were ignored, as a sentence for the log, or
// "". Not collective.
std::string ResolveModelConfig(ModelConfig* model, std::vector<std::string>* problems);

// OK when the directory holds exactly the model's tensors in their shapes (a head that repeats a tied embedding and the
// rotary frequencies of old files may be there too); else kData, listing what is missing, unexpected or of another
// shape. Returns the matrices that the files hold quantized, by name; they point into the directory's files.
absl::StatusOr<std::map<std::string, QuantizedMatrix>> CheckHfTensors(const HfDirectory& directory,
                                                                      const DecoderSpec& spec);

// OK when the file holds the model's tensors in their shapes. `file` must have passed ReadGgufFacts.
absl::Status CheckGgufTensors(const GgufFile& file, const GgufModelFacts& facts, const DecoderSpec& spec);

// Fills what this rank holds of every weight: `read` fills a rectangle; matrices of quantized buffers are taken from
// `quantized`, which then holds them all, or quantized from what `read` gives while it is read. Collective over each
// buffer's groups, also where reads fail: the first failure on this rank is returned. Publish() must follow.
using Wanted = std::function<bool(const ParameterBuffer&)>;  // which buffers are filled
using PartReader = std::function<absl::Status(const TensorPart&)>;
absl::Status FillWeights(Mesh& mesh, Model& model, const PartReader& read,
                         const std::map<std::string, QuantizedMatrix>& quantized, const Wanted& wanted);

// Fills the weights of `model` at the start of a run: from model.from, a directory (converted from F32, BF16 or F16) or
// a GGUF file (of any type that GgufDequantize knows), else from the seed; those of adapters from adapter.from or the
// seed. resumed: only those that the checkpoint did not bring, since they are not trained. Each rank maps the files and
// touches only its own rectangles. Missing and unexpected tensors are one error that lists them. Collective; errors are
// agreed.
absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Model& model, bool resumed);

}  // namespace trireme

#endif  // TRIREME_TRAINER_IMPORT_H_
