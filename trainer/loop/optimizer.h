// trainer/loop/optimizer.h
// The update rule on this rank's part of every buffer.
#ifndef TRIREME_TRAINER_LOOP_OPTIMIZER_H_
#define TRIREME_TRAINER_LOOP_OPTIMIZER_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "parallel/layers/expert_loads.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

class Optimizer {
 public:
  // Buffers must outlive it. State starts at zero. seed: of stochastic rounding.
  Optimizer(const OptimizerConfig& config, std::vector<ParameterBuffer*> buffers, uint64_t seed);

  // Updates own weights from own gradients as `decision` (kernels/base/update_decision.h, on the weights' device) says,
  // then publishes them. step: of the run, from 1, for random numbers; how many updates were taken, the decision knows.
  // loads: of the experts in this step, for OptimizerConfig.router_bias_rate; null: there are no experts.
  // Does not wait for the device. Collective over the gather groups.
  void Step(int64_t step, double learning_rate, const at::Tensor& decision, const ExpertLoads* loads = nullptr);

  // State tensors shaped like a buffer's own weights, float32: "exp_avg", "exp_avg_sq"; "velocity".
  struct State {
    ParameterBuffer* buffer;
    std::string name;
    at::Tensor tensor;  // [own_numel]
  };
  const std::vector<State>& states() const { return states_; }
  int64_t MemoryBytes() const;

 private:
  // Moves the corrections of routers against the loads of their experts (arXiv 2408.15664).
  void Balance(const ParameterBuffer& buffer, const at::Tensor& decision, const ExpertLoads& loads) const;
  void StepAdamW(size_t buffer_index, int64_t step, double learning_rate, const at::Tensor& decision);
  void StepSgd(size_t buffer_index, double learning_rate, const at::Tensor& decision);

  OptimizerConfig config_;
  std::vector<ParameterBuffer*> buffers_;
  uint64_t seed_;
  std::vector<State> states_;                       // in buffer order
  std::vector<std::vector<at::Tensor>> by_buffer_;  // the same tensors, per buffer
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_OPTIMIZER_H_
