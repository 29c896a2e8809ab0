// tests/kernels/decisions.h
// Decisions about updates, for tests of updates.
#ifndef TRIREME_TESTS_KERNELS_DECISIONS_H_
#define TRIREME_TESTS_KERNELS_DECISIONS_H_

#include <ATen/ops/empty.h>

#include <cstring>

#include "kernels/base/update_decision.h"

namespace trireme {

inline at::Tensor TensorOf(const UpdateDecision& decision) {
  at::Tensor tensor = at::empty({kDecisionNumbers}, at::TensorOptions().dtype(at::kDouble));
  std::memcpy(tensor.mutable_data_ptr(), &decision, sizeof(decision));
  return tensor;
}

// To take update number `updates`, with the gradient multiplied.
inline at::Tensor DecisionTo(double clip_factor, int64_t updates = 1, double beta1 = 0.9, double beta2 = 0.95) {
  DecisionRule rule;
  rule.beta1 = beta1;
  rule.beta2 = beta2;
  UpdateDecision previous;
  previous.updates = static_cast<double>(updates - 1);
  UpdateDecision decision = Decide(rule, 1, 1, 1, previous);
  decision.clip_factor = clip_factor;
  return TensorOf(decision);
}

}  // namespace trireme

#endif  // TRIREME_TESTS_KERNELS_DECISIONS_H_
