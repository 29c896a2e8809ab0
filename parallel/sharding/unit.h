// parallel/sharding/unit.h
// The smallest piece of a model that parallelism may touch.
#ifndef TRIREME_PARALLEL_SHARDING_UNIT_H_
#define TRIREME_PARALLEL_SHARDING_UNIT_H_

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/layers/context_attention.h"
#include "parallel/layers/expert_loads.h"
#include "parallel/layers/kept_results.h"
#include "parallel/layers/kv_cache.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// What flows from unit to unit: a short list of tensors of fixed shapes, [tokens, hidden] first.
using Carry = std::vector<at::Tensor>;

// One microbatch on the device: a flat stream of T tokens cut into segments. Under context parallelism T are this
// rank's tokens and the segments those of the whole stream.
struct MicrobatchTensors {
  at::Tensor tokens;     // [T] int64
  at::Tensor targets;    // [T] int64; negative: no loss
  at::Tensor positions;  // [T] int64, within the segment
  // [T] int64: rows of the tables of rotation, where long segments have others; undefined: positions.
  at::Tensor rotary_positions;
  at::Tensor cu_seqlens;  // [segments + 1] int32
  int64_t max_seqlen = 0;
  int64_t sequence_tokens = 0;  // of each sequence of the stream, on this rank
  at::Tensor is_token;          // [T] int64: 0 where one only fills a sequence; undefined: none does
  // By window: how the stream is cut over ranks; empty: it is not.
  std::map<int64_t, std::shared_ptr<const ContextAttention>> contexts;
  at::Tensor wanted;   // [n] int64: tokens whose logits Phase::kGenerate returns
  at::Tensor numbers;  // [T] int64: of each token in the run, for dropout; undefined: nothing is dropped
  // [n] int64, ascending: the tokens that have a target, the only ones the loss head looks at; undefined: all.
  at::Tensor with_target;
};

enum class Phase {
  kTrain,
  kEvaluate,
  kGenerate  // new tokens behind those in `cache`; the head returns logits [n, vocab] float32 instead of a loss
};

struct UnitContext {
  const MicrobatchTensors* batch = nullptr;
  Phase phase = Phase::kTrain;
  double loss_scale = 1;  // 1 / targets in the global batch: enters the loss head's gradient
  double z_loss = 0;
  ExpertLoads* loads = nullptr;  // kTrain: where routers tell what they chose, and get their losses; null: nowhere
  int64_t loss_chunk_tokens = 512;
  at::Tensor* loss_sums = nullptr;  // [2] float64: the loss head adds sum of cross-entropy and sum of lse^2
  KvCache* cache = nullptr;         // kGenerate: begun for this batch
  KeptResults* kept = nullptr;      // where a recomputed unit keeps results of its first pass; null: nothing
};

// Units hold no state between calls. The first unit gets an empty carry, the last returns a scalar to be seeded with
// one (training).
class Unit {
 public:
  virtual ~Unit() = default;
  virtual const std::string& name() const = 0;
  virtual const std::vector<ParameterBuffer*>& buffers() const = 0;
  // Whether running it twice to save memory makes sense (blocks do; embedding and head do not).
  virtual bool recomputable() const = 0;
  // Whether its backward asks for the values of its parameters (an embedding's does not): they are gathered for it.
  virtual bool backward_reads_parameters() const { return true; }
  // Sets parameters whose first values follow from those of others. The unit is gathered. Collective over what its
  // operations are collective over.
  virtual void InitializeDerived() {}
  // anchor: an empty tensor that requires grad.
  virtual Carry Forward(const UnitContext& context, Carry input, const at::Tensor& anchor) = 0;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_UNIT_H_
