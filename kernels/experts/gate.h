// kernels/experts/gate.h
// What an expert does between its products. Tensors and dtypes as in kernels/base/ops.h.
#ifndef TRIREME_KERNELS_EXPERTS_GATE_H_
#define TRIREME_KERNELS_EXPERTS_GATE_H_

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/base/ops.h"

namespace trireme {

struct ExpertGate {
  Activation activation = Activation::kSilu;  // of the gate: those of GatedForward, gate_up gate first
  std::optional<ClampedGate> clamped;         // instead: the gate and up of a unit are neighbours
};

// gate_up [R, 2F], weights [R, 1] (arithmetic type) -> activation(gate) x up x the row's weight [R, F].
at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate);

struct ExpertGateGradients {
  at::Tensor gate_up;  // [R, 2F]
  at::Tensor weights;  // [R, 1], arithmetic type
  at::Tensor out;      // [R, F]: what ExpertGateForward returned
};
ExpertGateGradients ExpertGateBackward(const at::Tensor& gate_up, const at::Tensor& weights, const at::Tensor& d_out,
                                       const ExpertGate& gate);

}  // namespace trireme

#endif  // TRIREME_KERNELS_EXPERTS_GATE_H_
