// parallel/layers/experts.h
// Mixtures of experts, dropless: each token goes to some experts, wherever they are, and what they make of it comes
// back. Conventions as in parallel/layers/functions.h; a tensor rank routes its own rows.
#ifndef TRIREME_PARALLEL_LAYERS_EXPERTS_H_
#define TRIREME_PARALLEL_LAYERS_EXPERTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/base/ops.h"
#include "kernels/base/weight.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/kept_results.h"

namespace trireme {

// How tokens choose experts, and with what weight.
struct RoutingRule {
  enum Score {
    kSoftmax,       // over all experts
    kSoftmaxAfter,  // over the chosen
    kSigmoid,       // of each expert apart
  } score = kSoftmax;
  int64_t experts = 0, per_token = 0;
  bool renormalize = false;               // the chosen weights to a sum of one
  double scale = 1;                       // of the weights, last
  int64_t groups = 1, chosen_groups = 1;  // experts of the best groups only
  double epsilon = 0;                     // added to the sum of the chosen before it divides
};

struct Routing {
  at::Tensor logits;   // [t, experts] arithmetic type, with gradient
  at::Tensor weights;  // [t, per_token] arithmetic type, with gradient
  at::Tensor shares;   // [t, experts] arithmetic type, with gradient: of each expert in a token, one in sum
  at::Tensor indices;  // [t, per_token] int64, a token's experts, the best first; equal ones by lower index
};
// rows [t, H], gate [E, H] -> routing. correction [E] is added to scores where experts are chosen, not where they are
// weighed; null: nothing. What was chosen is kept whatever else is (kept_results.h): computed again it might differ.
Routing Route(const at::Tensor& rows, Weight& gate, Weight* gate_bias, Weight* correction, const RoutingRule& rule,
              KeptResults* kept);

// rows [t, H], weight [N, H] -> rows weight^T [t, N] in the arithmetic type, of each rank's own rows.
at::Tensor RouterLogits(const at::Tensor& rows, Weight& weight);

struct ExpertWeights {
  Weight* gate_up;  // [local experts x 2F, H]: an expert's gate, then its up; with a clamped gate in turn
  Weight* down;     // [local experts x H, F]
  int64_t local_experts = 0, width = 0;                  // F
  Weight *gate_up_bias = nullptr, *down_bias = nullptr;  // [local experts x 2F], [local experts x H]; null: none
};
// rows [t, H] -> the sum over a token's experts of weight x down(activation(gate) up) [t, H]. Collective over `expert`,
// the ranks that experts are cut over; t may differ between them and be zero.
at::Tensor RunExperts(const at::Tensor& rows, const Routing& routing, const ExpertWeights& weights,
                      const ExpertGate& gate, ProcessGroup& expert);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_EXPERTS_H_
