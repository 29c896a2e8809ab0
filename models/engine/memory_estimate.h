// models/engine/memory_estimate.h
// What a rank will hold of a plan, from sizes alone.
#ifndef TRIREME_MODELS_ENGINE_MEMORY_ESTIMATE_H_
#define TRIREME_MODELS_ENGINE_MEMORY_ESTIMATE_H_

#include <c10/core/DeviceType.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "models/engine/engine_plan.h"

namespace trireme {

// What an optimizer holds of a model.
struct OptimizerMemory {
  // Bytes for each element of a parameter that is trained; null: none.
  std::function<double(const ParameterSpec& spec)> state_bytes;
  // Bytes for a moment of what works on whole matrices, of one in that parameter; null: nothing does.
  std::function<int64_t(const ParameterSpec& spec)> workspace_bytes;
};

struct RankMemory {
  int64_t weights = 0;      // shards in every format kept, and what is gathered at once
  int64_t gradients = 0;    // shards, and one unit's whole gradient while it is summed
  int64_t optimizer = 0;    // state, and what its update needs for a moment
  int64_t activations = 0;  // of all microbatches between forward and backward, and the loss head's logits
  int64_t total() const { return weights + gradients + optimizer + activations; }
};

std::string ToString(const RankMemory& memory);  // "1.1 GB: weights 557.6 MB, ..."

// What a rank at `pipeline_rank` will need, on a device of that type. Leaves out what does not grow with the model:
// libraries, communicators, the loader.
RankMemory EstimateMemory(const EnginePlan& plan, const OptimizerMemory& optimizer, int pipeline_rank,
                          c10::DeviceType device);

// EnginePlan::loss_chunk_tokens, or what suits the device.
int64_t LossChunkTokens(const EnginePlan& plan, c10::DeviceType device);

// Bytes that one microbatch keeps on a rank from forward to backward in that block.
int64_t BlockActivationBytes(const EnginePlan& plan, int64_t layer);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_MEMORY_ESTIMATE_H_
