// trainer/loop/evaluation.h
// The loss on a split, shared out over the data ranks.
#ifndef TRIREME_TRAINER_LOOP_EVALUATION_H_
#define TRIREME_TRAINER_LOOP_EVALUATION_H_

#include <functional>

#include "data/sampling/loader.h"
#include "data/sampling/sampler.h"
#include "models/engine/engine.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

// Mean cross-entropy per target over the first `max_sequences` windows (0: all), in nat; the same on every rank and, up
// to round-off, for every number of ranks. Collective. seen: told of each microbatch of this data rank.
absl::StatusOr<double> EvaluateSplit(Engine& model, Mesh& mesh, const Sampler& sampler, const Recipe& recipe,
                                     int64_t max_sequences, const std::function<void(const Microbatch&)>& seen = {});

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_EVALUATION_H_
