#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {

DecoderSpec SpecifyLlama(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftDecoder(config, problems).Build(problems);
}

ModelFamily LlamaFamily() { return {"llama", &SpecifyLlama}; }

}  // namespace trireme
