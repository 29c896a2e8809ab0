// models/family.h
// A model family as a record. A new one is a function from configuration to DecoderSpec and a line in a list.
#ifndef TRIREME_MODELS_FAMILY_H_
#define TRIREME_MODELS_FAMILY_H_

#include <string>
#include <vector>

#include "models/decoder_spec.h"

namespace trireme {

struct ModelFamily {
  std::string name;  // ModelConfig.family
  // Checks the configuration and fills in what it leaves open; every problem is appended to `problems`
  // ("model.hidden_size: ... ; remedy").
  DecoderSpec (*specify)(const ModelConfig& config, std::vector<std::string>* problems);
};

// Llama 2/3 (arXiv 2302.13971, 2407.21783): RMSNorm before, grouped queries, rotary positions, SwiGLU, no biases.
ModelFamily LlamaFamily();

// The families built in; a program outside the tree passes more to Main().
std::vector<ModelFamily> BuiltInFamilies();

// The family called `name`; the error lists the known ones.
absl::StatusOr<ModelFamily> FindFamily(const std::vector<ModelFamily>& families, const std::string& name);

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILY_H_
