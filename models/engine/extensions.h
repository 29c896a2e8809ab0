// models/engine/extensions.h
// What a program brings along: the families and attention implementations it knows.
#ifndef TRIREME_MODELS_ENGINE_EXTENSIONS_H_
#define TRIREME_MODELS_ENGINE_EXTENSIONS_H_

#include <vector>

#include "kernels/attention/attention.h"
#include "models/spec/family.h"

namespace trireme {

struct Extensions {
  std::vector<ModelFamily> families = BuiltInFamilies();
  std::vector<AttentionBackend> attention_backends = BuiltInAttentionBackends();
};

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_EXTENSIONS_H_
