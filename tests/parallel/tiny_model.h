// tests/parallel/tiny_model.h
// A two-layer, 64-wide Llama trained under any layout, for comparing layouts with each other.
#ifndef TRIREME_TESTS_PARALLEL_TINY_MODEL_H_
#define TRIREME_TESTS_PARALLEL_TINY_MODEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "data/sampling/loader.h"
#include "models/blocks/decoder.h"
#include "parallel/comm/mesh.h"
#include "parallel/sharding/stage.h"
#include "trainer/loop/optimizer.h"

namespace trireme {

using Tensors = std::map<std::string, at::Tensor>;  // by parameter, float32, whole

// What must not change numbers, and what defines them (the last five).
struct Layout {
  ShardLevel shard = ShardLevel::kParameters;
  int accumulation = 1;  // microbatches per rank and step
  bool recompute = false;
  bool reduce_last = false;  // sum gradients over ranks after the last microbatch only

  bool tied = false;
  bool document_mask = false;
  at::ScalarType compute = at::kFloat;
  bool master_weights = true;
  bool adamw = false;  // else SGD

  std::string ToString() const;
};

inline constexpr int64_t kTinyGlobalBatch = 16;  // sequences
inline constexpr int64_t kTinySequenceLength = 32;

DecoderSpec TinySpec(bool tied);

// Sequences [first, first + count) of step `step`'s global batch: some tokens, cut into documents.
Microbatch TinyMicrobatch(int64_t step, int64_t first, int64_t count, bool document_mask);

// The whole tensor from the ranks' parts of it (own_weights() or own_gradient() of `buffer`), by parameter; float32.
// Collective over the gather group.
Tensors WholeTensors(const ParameterBuffer& buffer, const at::Tensor& own);

class TinyTrainer {
 public:
  // mesh null: the whole global batch on this rank alone. Resharded slabs are poisoned.
  TinyTrainer(const Layout& layout, Mesh* mesh,
              std::function<void(const std::string& action, int unit)> observer = nullptr);

  double ForwardBackward(int64_t step);  // mean loss over the global batch
  void Update(int64_t step);

  // Collective over the gather groups.
  Tensors Gradients() const;
  Tensors Weights() const;

 private:
  Layout layout_;
  int data_rank_ = 0, data_ranks_ = 1;
  std::shared_ptr<ProcessGroup> data_group_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_TINY_MODEL_H_
