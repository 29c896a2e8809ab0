// trainer/loop/initialize.h
// The weights that a run starts from.
#ifndef TRIREME_TRAINER_LOOP_INITIALIZE_H_
#define TRIREME_TRAINER_LOOP_INITIALIZE_H_

#include "launch/base/status.h"
#include "models/engine/engine.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

// Fills the weights of `model` at the start of a run: from model.from, a directory (converted from F32, BF16 or F16) or
// a GGUF file (of any type that GgufDequantize knows), else from the seed; those of adapters from adapter.from or the
// seed. resumed: only those that the checkpoint did not bring, since they are not trained. Each rank maps the files and
// touches only its own rectangles. Missing and unexpected tensors are one error that lists them. Collective; errors are
// agreed.
absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Engine& model, bool resumed);

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_INITIALIZE_H_
