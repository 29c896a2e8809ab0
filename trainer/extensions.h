// trainer/extensions.h
// What a program brings along: the families and attention implementations it knows.
#ifndef TRIREME_TRAINER_EXTENSIONS_H_
#define TRIREME_TRAINER_EXTENSIONS_H_

#include <vector>

#include "kernels/attention.h"
#include "models/family.h"

namespace trireme {

struct Extensions {
  std::vector<ModelFamily> families = BuiltInFamilies();
  std::vector<AttentionBackend> attention_backends = BuiltInAttentionBackends();
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXTENSIONS_H_
