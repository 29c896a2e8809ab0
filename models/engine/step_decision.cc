#include "models/engine/step_decision.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstring>

#include "kernels/base/ops.h"
#include "kernels/base/upload.h"
#include "launch/base/status.h"

namespace trireme {
namespace {

constexpr int64_t kOwnSums = 3;  // loss, lse^2, squares of the gradient

}  // namespace

StepResults PendingResults::Wait() const {
  const at::Tensor& record = record_.Wait();
  const double* numbers = record.const_data_ptr<double>();
  UpdateDecision d;
  std::memcpy(static_cast<void*>(&d), numbers, sizeof(d));
  StepResults results;
  results.loss.mean = d.loss_sum / targets_;
  results.loss.targets = static_cast<int64_t>(targets_);
  if (z_loss_ > 0) results.loss.z_loss = z_loss_ * d.lse_square_sum / targets_;
  results.norm = {d.norm, d.clip_factor};
  results.finite = std::isfinite(d.loss_sum) && std::isfinite(d.norm);
  results.applied = d.apply != 0;
  results.consecutive_skips = static_cast<int64_t>(d.consecutive_skips);
  results.updates = static_cast<int64_t>(d.updates);
  if (loads_.has_value()) results.routers = ExpertLoads::Describe(loads_->first, loads_->second.Wait());
  results.own_loss_sum = numbers[kDecisionNumbers];
  results.own_squares.assign(numbers + kDecisionNumbers + kOwnSums, numbers + record.numel());
  return results;
}

StepDecision::StepDecision(double z_loss, Mesh& mesh) : mesh_(mesh), z_loss_(z_loss) { Restore(0, 0); }

void StepDecision::Restore(int64_t updates, int64_t consecutive_skips) {
  UpdateDecision start;
  start.updates = static_cast<double>(updates);
  start.consecutive_skips = static_cast<double>(consecutive_skips);
  std::vector<double> numbers(kDecisionNumbers);
  std::memcpy(numbers.data(), &start, sizeof(start));
  decision_ = Uploaded(std::move(numbers), mesh_.device());
}

void StepDecision::Begin(int64_t num_gradients) {
  previous_ = decision_;
  record_ = at::zeros({kDecisionNumbers + kOwnSums + num_gradients},
                      at::TensorOptions().dtype(at::kDouble).device(mesh_.device()));
}

PendingResults StepDecision::Decide(const std::vector<at::Tensor>& gradients, double targets, double max_norm) {
  if (ranks_ == nullptr) {
    ranks_ = mesh_.group({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard, Axis::kContext, Axis::kTensor});
    // Tensor ranks hold the same losses, and replicas the same gradients.
    loss_ranks_ = Uploaded(mesh_.RanksAlong({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard, Axis::kContext}),
                           mesh_.device());
    norm_ranks_ =
        Uploaded(mesh_.RanksAlong({Axis::kPipeline, Axis::kDataShard, Axis::kContext, Axis::kTensor}), mesh_.device());
  }
  const auto count = static_cast<int64_t>(gradients.size());
  TRIREME_CHECK(record_.numel() == kDecisionNumbers + kOwnSums + count, "a step of ", count, " gradients");
  const at::Tensor own = record_.narrow(0, kDecisionNumbers, kOwnSums);
  SquaredNorms(gradients, record_.narrow(0, kDecisionNumbers + kOwnSums, count), own.narrow(0, 2, 1));
  const at::Tensor parts = at::empty({ranks_->size() * kOwnSums}, own.options());
  ranks_->AllGather(parts, own).Wait();
  rule_.max_norm = max_norm;
  decision_ = record_.narrow(0, 0, kDecisionNumbers);
  DecideUpdate(rule_, parts, loss_ranks_, norm_ranks_, previous_, decision_);
  return PendingResults(record_, targets, z_loss_);
}

}  // namespace trireme
