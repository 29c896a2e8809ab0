// models/engine/step_decision.h
// A step's loss and gradient norm over all ranks, and what they decide about its update: made on the device, so that
// neither the update nor the step after it waits for the host, which learns of them later.
#ifndef TRIREME_MODELS_ENGINE_STEP_DECISION_H_
#define TRIREME_MODELS_ENGINE_STEP_DECISION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/update_decision.h"
#include "parallel/comm/mesh.h"
#include "parallel/layers/expert_loads.h"

namespace trireme {

struct Loss {
  double mean = 0;      // cross-entropy per target, over the global batch. Unit: nat
  double z_loss = 0;    // coefficient x mean of lse^2
  int64_t targets = 0;  // in the global batch
};

// The gradient norm of every parameter, by name.
using GradientNorms = std::vector<std::pair<std::string, double>>;

struct GradNorm {
  double total = 0;        // L2 norm over every element once; all ranks hold the same bits
  double clip_factor = 1;  // min(1, max_norm / (total + 1e-6))
};

// What the host learns of a step. All but the own_ fields are the same on all ranks.
struct StepResults {
  Loss loss;
  GradNorm norm;
  bool finite = true;                    // loss and norm are
  bool applied = true;                   // the update was taken
  int64_t consecutive_skips = 0;         // updates left out in a row, this one included
  int64_t updates = 0;                   // taken since the run began
  std::optional<RouterResults> routers;  // of a model with experts
  double own_loss_sum = 0;
  std::vector<double> own_squares;  // of the gradients that this rank counts, in their order
};

// On their way to the host.
class PendingResults {
 public:
  PendingResults(const at::Tensor& record, double targets, double z_loss_coefficient)
      : record_(record), targets_(targets), z_loss_(z_loss_coefficient) {}
  // Adds what routers did.
  void AddLoads(const ExpertLoads& loads) { loads_.emplace(loads.layers(), HostCopy(loads.sums())); }
  StepResults Wait() const;

 private:
  HostCopy record_;
  double targets_, z_loss_;
  std::optional<std::pair<std::vector<ExpertLayer>, HostCopy>> loads_;
};

class StepDecision {
 public:
  // z_loss: coefficient of the squared log-sum-exp, for the results.
  StepDecision(double z_loss, Mesh& mesh);

  // Holds from the next decision on; the norm's bound is Decide()'s.
  void set_rule(const DecisionRule& rule) { rule_ = rule; }

  // Tells what happened before the run was resumed: updates taken, and how many of the last ones were left out.
  void Restore(int64_t updates, int64_t consecutive_skips);

  // Begins a step of as many gradient tensors. What was decided last now belongs to the past.
  void Begin(int64_t num_gradients);
  // [2] float64: where this rank's loss head adds sum of cross-entropy and sum of lse^2.
  at::Tensor loss_sums() const { return record_.narrow(0, kDecisionNumbers, 2); }

  // Collective over the job, on the device's groups. gradients: the parts that this rank counts; targets: of the global
  // batch. May be called again in the same step.
  PendingResults Decide(const std::vector<at::Tensor>& gradients, double targets, double max_norm);
  // [kDecisionNumbers], for the optimizer; of the last Decide().
  const at::Tensor& decision() const { return decision_; }

 private:
  Mesh& mesh_;
  DecisionRule rule_;
  double z_loss_;
  std::shared_ptr<ProcessGroup> ranks_;  // all of the job
  at::Tensor loss_ranks_, norm_ranks_;   // those whose sums count
  at::Tensor previous_, decision_;       // [kDecisionNumbers] of the last step that ended; of this one
  at::Tensor record_;                    // decision, own sums [3], squares of each gradient
};

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_STEP_DECISION_H_
