// trainer/optimizer.h
// The update rule on this rank's part of every buffer.
#ifndef TRIREME_TRAINER_OPTIMIZER_H_
#define TRIREME_TRAINER_OPTIMIZER_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

class Optimizer {
 public:
  // Buffers must outlive it. State starts at zero. seed: of stochastic rounding.
  Optimizer(const OptimizerConfig& config, std::vector<ParameterBuffer*> buffers, uint64_t seed);

  // Updates own weights from own gradients x gradient_scale, then publishes them. `update` counts the updates taken,
  // from 1: a step whose update is skipped adds nothing to the moments, so it must not count in their bias correction.
  // Collective over the gather groups.
  void Step(int64_t update, double learning_rate, double gradient_scale);

  // State tensors shaped like a buffer's own weights, float32: "exp_avg", "exp_avg_sq"; "velocity".
  struct State {
    ParameterBuffer* buffer;
    std::string name;
    at::Tensor tensor;  // [own_numel]
  };
  const std::vector<State>& states() const { return states_; }
  int64_t MemoryBytes() const;

 private:
  void StepAdamW(size_t buffer_index, int64_t update, double learning_rate, double gradient_scale);
  void StepSgd(size_t buffer_index, double learning_rate, double gradient_scale);

  OptimizerConfig config_;
  std::vector<ParameterBuffer*> buffers_;
  uint64_t seed_;
  std::vector<State> states_;                       // in buffer order
  std::vector<std::vector<at::Tensor>> by_buffer_;  // the same tensors, per buffer
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_OPTIMIZER_H_
