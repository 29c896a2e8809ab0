#include <ATen/ops/empty.h>

#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

template <typename T>
const ExpertGateLoops<T, Arithmetic<T>>& GateLoops(const ExpertGate& gate) {
  if (gate.clamped.has_value()) return LoopsFor<T>().expert_clamped;
  return gate.activation == Activation::kSilu ? LoopsFor<T>().expert_swiglu : LoopsFor<T>().expert_geglu;
}

}  // namespace

at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate) {
  if (gate_up.is_cuda()) return cuda::ExpertGateForward(gate_up, weights, gate);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  at::Tensor out = at::empty({rows, width}, gate_up.options());
  DispatchDtype(gate_up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto forward = GateLoops<T>(gate).forward;
    ParallelRanges(rows, RowGrain(2 * width), [&](int64_t begin, int64_t end) {
      forward(gate.clamped.value_or(ClampedGate()), end - begin, width, Data<T>(gate_up) + begin * 2 * width,
              Data<Arithmetic<T>>(weights) + begin, Data<T>(out) + begin * width);
    });
  });
  return out;
}

ExpertGateGradients ExpertGateBackward(const at::Tensor& gate_up, const at::Tensor& weights, const at::Tensor& d_out,
                                       const ExpertGate& gate) {
  if (gate_up.is_cuda()) return cuda::ExpertGateBackward(gate_up, weights, d_out, gate);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  ExpertGateGradients gradients{at::empty(gate_up.sizes(), gate_up.options()),
                                at::empty(weights.sizes(), weights.options()),
                                at::empty({rows, width}, gate_up.options())};
  DispatchDtype(gate_up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    const auto backward = GateLoops<T>(gate).backward;
    ParallelRanges(rows, RowGrain(4 * width), [&](int64_t begin, int64_t end) {
      backward(gate.clamped.value_or(ClampedGate()), end - begin, width, Data<T>(gate_up) + begin * 2 * width,
               Data<C>(weights) + begin, Data<T>(d_out) + begin * width, Data<T>(gradients.gate_up) + begin * 2 * width,
               Data<C>(gradients.weights) + begin, Data<T>(gradients.out) + begin * width);
    });
  });
  return gradients;
}

}  // namespace trireme
