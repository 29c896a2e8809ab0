// kernels/base/update_decision.h
// What the results of a step, over all ranks, decide about its update. It is made and read where the weights are, so
// that the host need not wait for a GPU to know it. Read by the CPU and the CUDA kernels alike.
#ifndef TRIREME_KERNELS_BASE_UPDATE_DECISION_H_
#define TRIREME_KERNELS_BASE_UPDATE_DECISION_H_

#include <math.h>
#include <stdint.h>

#include "kernels/base/element_math.h"

namespace trireme {

// Lies in a float64 tensor [kDecisionNumbers], field by field.
struct UpdateDecision {
  double loss_sum = 0;           // of the cross-entropy, over the targets of the global batch
  double lse_square_sum = 0;     // of lse^2, likewise
  double norm = 0;               // L2, of the whole gradient before clipping
  double clip_factor = 1;        // multiplies the gradient
  double apply = 1;              // 0: this step's update is left out
  double stopped = 0;            // 1: more updates in a row were left out than the run allows, and none follows
  double consecutive_skips = 0;  // updates left out in a row, this one included
  double updates = 0;            // taken so far, this one included: AdamW's count of steps
  double first_correction = 1;   // 1 - beta1^updates
  double second_correction = 1;  // 1 / sqrt(1 - beta2^updates)
};
inline constexpr int kDecisionNumbers = sizeof(UpdateDecision) / sizeof(double);

// What a run's config says about it.
struct DecisionRule {
  double max_norm = 0;               // 0: no clipping
  double max_consecutive_skips = 0;  // 0: the first non-finite step is the last
  double beta1 = 0.9, beta2 = 0.999;
};

TRIREME_HOST_DEVICE inline UpdateDecision Decide(const DecisionRule& rule, double loss_sum, double lse_square_sum,
                                                 double gradient_square_sum, const UpdateDecision& previous) {
  UpdateDecision d;
  d.loss_sum = loss_sum;
  d.lse_square_sum = lse_square_sum;
  d.norm = sqrt(gradient_square_sum);
  const double factor = rule.max_norm > 0 ? rule.max_norm / (d.norm + 1e-6) : 1;
  d.clip_factor = factor < 1 ? factor : 1;
  // A difference from itself: infinities and NaN give NaN.
  const bool finite = loss_sum - loss_sum == 0 && d.norm - d.norm == 0;
  d.consecutive_skips = finite ? 0 : previous.consecutive_skips + 1;
  d.stopped = previous.stopped != 0 || d.consecutive_skips > rule.max_consecutive_skips ? 1 : 0;
  d.apply = finite && d.stopped == 0 ? 1 : 0;
  d.updates = previous.updates + d.apply;
  d.first_correction = 1 - pow(rule.beta1, d.updates);
  d.second_correction = 1 / sqrt(1 - pow(rule.beta2, d.updates));
  return d;
}

// What an update knows beside the decision.
struct AdamWRule {
  double rate = 0;  // learning rate of these weights
  float keep = 1;   // 1 - rate * weight decay
  float beta1 = 0, beta2 = 0, one_minus_beta1 = 1, one_minus_beta2 = 1;
  float eps = 0;
};
struct SgdRule {
  float rate = 0, momentum = 0, keep = 1;
};

TRIREME_HOST_DEVICE inline AdamWStep StepOf(const AdamWRule& rule, const UpdateDecision& decision) {
  AdamWStep s;
  s.gradient_scale = static_cast<float>(decision.clip_factor);
  s.beta1 = rule.beta1;
  s.beta2 = rule.beta2;
  s.one_minus_beta1 = rule.one_minus_beta1;
  s.one_minus_beta2 = rule.one_minus_beta2;
  s.step_size = static_cast<float>(rule.rate / decision.first_correction);
  s.inverse_root_correction = static_cast<float>(decision.second_correction);
  s.eps = rule.eps;
  return s;
}

// Where a flat part of a rectangle of a matrix stands in the whole matrix: its element i is element Of(i) there.
struct WholeIndex {
  int64_t origin = 0;             // of the rectangle's first element, in the whole
  int64_t begin = 0;              // of the part, in the rectangle
  int64_t width = 1, stride = 1;  // of a row: in the rectangle, in the whole

  TRIREME_HOST_DEVICE bool contiguous() const { return width == stride; }
  TRIREME_HOST_DEVICE int64_t Of(int64_t i) const {
    const int64_t j = begin + i;
    return contiguous() ? origin + j : origin + j / width * stride + j % width;
  }
  // How many elements from i on follow each other in the whole, at most `most`.
  int64_t RunFrom(int64_t i, int64_t most) const {
    const int64_t left = width - (begin + i) % width;
    return contiguous() || left > most ? most : left;
  }
  // Whether packs of `count` elements from multiples of it stand at multiples of it in the whole, each within a row.
  bool KeepsPacks(int64_t count) const {
    if (contiguous()) return (origin + begin) % count == 0;
    return origin % count == 0 && begin % count == 0 && width % count == 0 && stride % count == 0;
  }
};

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_UPDATE_DECISION_H_
