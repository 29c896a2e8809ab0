// kernels/base/update_elements.h
// Update rules as functions of one element, read by the CPU and the CUDA kernels alike: element(i, p) is the new value
// of the weight p, which is element i of the flat arrays that the record points to; state is written on the way.
#ifndef TRIREME_KERNELS_BASE_UPDATE_ELEMENTS_H_
#define TRIREME_KERNELS_BASE_UPDATE_ELEMENTS_H_

#include <math.h>
#include <stdint.h>

#include "kernels/base/host_device.h"
#include "kernels/base/update_decision.h"

namespace trireme {

// Lion (arXiv 2302.06675): a step of one size in the direction of the sign.
struct LionRule {
  float rate = 0;                                // learning rate of these weights
  float keep = 1;                                // 1 - rate * weight decay
  float beta1 = 0.9F, one_minus_beta1 = 0.1F;    // of the direction
  float beta2 = 0.99F, one_minus_beta2 = 0.01F;  // of the momentum
};
struct LionElement {
  LionRule rule;
  const float* g;
  float* m;
  float scale = 1;  // of the gradient
  TRIREME_HOST_DEVICE float operator()(int64_t i, float p) const {
    const float gradient = g[i] * scale;
    const float direction = m[i] * rule.beta1 + gradient * rule.one_minus_beta1;
    m[i] = m[i] * rule.beta2 + gradient * rule.one_minus_beta2;
    const float sign = direction > 0 ? 1.0F : direction < 0 ? -1.0F : direction;  // zero and NaN stay
    return p * rule.keep - rule.rate * sign;
  }
};

// A step in a direction that is known already: Muon's.
struct DirectionRule {
  float rate = 0;
  float keep = 1;  // 1 - learning rate * weight decay
};
struct DirectionElement {
  DirectionRule rule;
  const float* direction;
  TRIREME_HOST_DEVICE float operator()(int64_t i, float p) const { return p * rule.keep - rule.rate * direction[i]; }
};

// What Muon orthogonalizes: the mean of gradients, or (nesterov) that of the next step if its gradient were this one's.
struct MuonMomentumRule {
  float momentum = 0.95F, one_minus_momentum = 0.05F;
  bool nesterov = true;
};
TRIREME_HOST_DEVICE inline float MuonMomentumElement(const MuonMomentumRule& rule, float gradient, float* mean) {
  const float next = *mean + (gradient - *mean) * rule.one_minus_momentum;
  *mean = next;
  return rule.nesterov ? next - (next - gradient) * rule.one_minus_momentum : next;
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_UPDATE_ELEMENTS_H_
