// trainer/loop/optimizer.h
// The update rule on this rank's part of every buffer.
#ifndef TRIREME_TRAINER_LOOP_OPTIMIZER_H_
#define TRIREME_TRAINER_LOOP_OPTIMIZER_H_

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "configs/run_config.pb.h"
#include "kernels/base/ops.h"
#include "parallel/comm/mesh.h"
#include "parallel/layers/expert_loads.h"
#include "parallel/sharding/parameter_buffer.h"
#include "parallel/sharding/whole_matrices.h"

namespace trireme {

class Optimizer {
 public:
  // Buffers must outlive it. State starts at zero. seed: of stochastic rounding. mesh: the ranks over which buffers are
  // cut, which Muon needs; null: this rank alone. Collective over the mesh.
  Optimizer(const OptimizerConfig& config, std::vector<ParameterBuffer*> buffers, uint64_t seed, Mesh* mesh = nullptr);

  // Updates own weights from own gradients as `decision` (kernels/base/update_decision.h, on the weights' device) says,
  // then publishes them. step: of the run, from 1, for random numbers; how many updates were taken, the decision knows.
  // learning_rate: of the rule; what AdamW updates beside Muon has its share of it, as their peaks are to each other.
  // loads: of the experts in this step, for OptimizerConfig.router_bias_rate; null: there are no experts.
  // Does not wait for the device. Collective over the gather groups and, with Muon, over all ranks that share buffers.
  void Step(int64_t step, double learning_rate, const at::Tensor& decision, const ExpertLoads* loads = nullptr);

  // What is kept of the parameters of a buffer that a rule updates, float32: "exp_avg", "exp_avg_sq" (AdamW, and Lion
  // the first), "velocity" (SGD), "momentum_buffer" (Muon). Of AdamW in 8 bits: "exp_avg_codes", "exp_avg_sq_codes"
  // (bytes), "exp_avg_absmax" and "exp_avg_sq_absmax".
  struct State {
    ParameterBuffer* buffer;
    std::string name;
    at::Tensor tensor;
    std::vector<int64_t> begin;  // in `tensor`, of each of the buffer's segments(); -1: it has none
    int64_t block = 1;           // elements of a parameter that one of the tensor's stands for
  };
  const std::vector<State>& states() const { return states_; }
  int64_t MemoryBytes() const;
  // What Newton-Schulz took on this rank so far, all steps together; 0 on a GPU, which nobody waits for.
  double newton_schulz_seconds() const { return newton_schulz_seconds_; }

 private:
  struct Update;  // of one segment, in one step

  void AddStates(ParameterBuffer* buffer);
  // Moves the corrections of routers against the loads of their experts (arXiv 2408.15664).
  void Balance(const ParameterBuffer& buffer, const at::Tensor& decision, const ExpertLoads& loads) const;
  // Calls visit(update) for every segment of the buffer whose parameter is trained, by Muon or by the other rule.
  template <typename Visit>
  void EachUpdate(ParameterBuffer* buffer, int64_t step, double learning_rate, bool muon, Visit&& visit) const;
  void StepAdamW(const Update& update, const at::Tensor& decision, const AdamW& config) const;
  void StepLion(const Update& update, const at::Tensor& decision) const;
  void StepSgd(const Update& update, const at::Tensor& decision) const;
  void StepMuon(int64_t step, double learning_rate, const at::Tensor& decision);

  OptimizerConfig config_;
  std::vector<ParameterBuffer*> buffers_;
  uint64_t seed_;
  std::vector<State> states_;                                               // in buffer order
  std::map<std::pair<const ParameterBuffer*, std::string>, size_t> found_;  // of states_
  std::unique_ptr<WholeMatrices> matrices_;                                 // Muon's; null: there are none
  NewtonSchulzRule newton_schulz_;
  double newton_schulz_seconds_ = 0;
  MomentTables tables_;  // of AdamW in 8 bits
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_OPTIMIZER_H_
