#include "models/spec/family.h"

namespace trireme {

ModelFamily LlamaFamily() { return {"llama", &SpecifyDecoder}; }

}  // namespace trireme
