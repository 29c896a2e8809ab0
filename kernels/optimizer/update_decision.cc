#include "kernels/base/update_decision.h"

#include "kernels/base/ops.h"
#include "kernels/cuda/ops.h"
#include "launch/base/status.h"

namespace trireme {

const UpdateDecision& DecisionIn(const at::Tensor& tensor) {
  TRIREME_CHECK(tensor.is_cpu() && tensor.scalar_type() == at::kDouble && tensor.numel() == kDecisionNumbers);
  return *reinterpret_cast<const UpdateDecision*>(tensor.const_data_ptr<double>());
}

void DecideUpdate(const DecisionRule& rule, const at::Tensor& parts, const at::Tensor& loss_ranks,
                  const at::Tensor& norm_ranks, const at::Tensor& previous, at::Tensor decision) {
  if (parts.is_cuda()) return cuda::DecideUpdate(rule, parts, loss_ranks, norm_ranks, previous, decision);
  const auto sum = [&](const at::Tensor& ranks, int column) {
    const int64_t* rank = ranks.const_data_ptr<int64_t>();
    double total = 0;
    for (int64_t i = 0; i < ranks.numel(); ++i) total += parts.const_data_ptr<double>()[rank[i] * 3 + column];
    return total;
  };
  *reinterpret_cast<UpdateDecision*>(decision.mutable_data_ptr<double>()) =
      Decide(rule, sum(loss_ranks, 0), sum(loss_ranks, 1), sum(norm_ranks, 2), DecisionIn(previous));
}

}  // namespace trireme
