// models/engine/engine_plan.h
// All that sets a model up on ranks, as plain data: made from a run's config for training, from a server's for serving,
// or by hand.
#ifndef TRIREME_MODELS_ENGINE_ENGINE_PLAN_H_
#define TRIREME_MODELS_ENGINE_ENGINE_PLAN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "models/spec/decoder_spec.h"
#include "parallel/comm/mesh.h"
#include "parallel/layers/context_split.h"
#include "parallel/layers/expert_loads.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// How parameters and their gradients are held.
struct StoragePolicy {
  ShardLevel shard = ShardLevel::kParameters;
  bool reduce_every_microbatch = true;  // else gradients are summed over ranks after a step's last microbatch
  at::ScalarType compute = at::kFloat;  // in which products are
  bool master_weights = true;           // float32 beside a bfloat16 compute type
  at::ScalarType reduce = at::kFloat;   // on the wire when gradients are summed
};

// What blocks compute again in the backward pass instead of keeping it.
struct RecomputePolicy {
  bool blocks = false;         // all of a block, but for `keep`
  std::set<std::string> keep;  // results that stay (parallel/layers/kept_results.h)
  bool offload = false;        // what stays waits in host memory, for a GPU
};

struct EnginePlan {
  DecoderSpec model;
  MeshShape mesh;
  Schedule schedule;             // over pipeline ranks, computations only
  std::vector<int> stage_units;  // how many units (embedding, blocks, head) each stage has
  StoragePolicy storage;
  RecomputePolicy recompute;
  std::string attention = "auto";  // a backend's name, or "auto": the first that can do what the model asks
  ContextMethod context_method = ContextMethod::kGather;
  int64_t sequence_length = 1;    // tokens; of training and evaluation
  int64_t micro_batch_size = 1;   // sequences
  double z_loss = 0;              // coefficient of the squared log-sum-exp in the loss
  RouterLossRule router;          // losses of the routers of experts
  int64_t loss_chunk_tokens = 0;  // tokens whose logits exist at once in the loss head; 0: what suits the device
  bool deterministic = false;     // on a GPU too; CPUs always are
  uint64_t seed = 0;              // of initial weights
};

// One rank, one stage with all units, one microbatch at a time: a plan for `model` alone.
EnginePlan PlanForOneRank(const DecoderSpec& model);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_ENGINE_PLAN_H_
