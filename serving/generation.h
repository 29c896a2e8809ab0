// serving/generation.h
// One text from an engine, token by token.
#ifndef TRIREME_SERVING_GENERATION_H_
#define TRIREME_SERVING_GENERATION_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "models/engine/engine.h"
#include "parallel/comm/mesh.h"
#include "parallel/layers/kv_cache.h"
#include "serving/sampling.h"

namespace trireme {

struct GeneratedToken {
  int64_t id = 0;
  double log_probability = 0;  // in nat, under the model's own softmax
};

// Continues `prompt` (not empty) by up to max_tokens tokens, as far as cache.capacity(0) reaches; `cache` is empty.
// `next` hears of each token, on every rank alike, and returns whether to go on. The same tokens on every mesh, up to
// round-off. Collective.
void GenerateTokens(Engine& model, Mesh& mesh, KvCache& cache, const std::vector<int64_t>& prompt, int64_t max_tokens,
                    const SamplingOptions& sampling, const std::function<bool(const GeneratedToken&)>& next);

}  // namespace trireme

#endif  // TRIREME_SERVING_GENERATION_H_
