#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {

at::Tensor GatedForward(const at::Tensor& gate_up, Activation activation) {
  if (gate_up.is_cuda()) return cuda::GatedForward(gate_up, activation);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  at::Tensor out = at::empty({rows, width}, gate_up.options());
  DispatchDtype(gate_up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto& loops = LoopsFor<T>();
    const auto gated = activation == Activation::kSilu ? loops.swiglu : loops.geglu;
    ParallelRanges(rows, RowGrain(2 * width), [&](int64_t begin, int64_t end) {
      gated(end - begin, width, Data<T>(gate_up) + begin * 2 * width, Data<T>(out) + begin * width);
    });
  });
  return out;
}

at::Tensor GatedBackward(const at::Tensor& gate_up, const at::Tensor& d_out, Activation activation, bool in_place) {
  if (gate_up.is_cuda()) return cuda::GatedBackward(gate_up, d_out, activation, in_place);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  at::Tensor d_gate_up = in_place ? gate_up : at::empty(gate_up.sizes(), gate_up.options());
  DispatchDtype(gate_up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto& loops = LoopsFor<T>();
    const auto gated = activation == Activation::kSilu ? loops.swiglu_backward : loops.geglu_backward;
    ParallelRanges(rows, RowGrain(2 * width), [&](int64_t begin, int64_t end) {
      gated(end - begin, width, Data<T>(gate_up) + begin * 2 * width, Data<T>(d_out) + begin * width,
            Data<T>(d_gate_up) + begin * 2 * width);
    });
  });
  return d_gate_up;
}

namespace {

// Gates and ups as they are and after their limits, in the arithmetic type.
struct ClampedParts {
  at::Tensor gate, up, g, u, share;
  ClampedParts(const at::Tensor& gate_up, const ClampedGate& gate_rule) {
    const at::Tensor pairs =
        gate_up.to(ArithmeticType(gate_up.scalar_type())).view({gate_up.size(0), gate_up.size(1) / 2, 2});
    gate = pairs.select(2, 0);
    up = pairs.select(2, 1);
    g = at::clamp(gate, std::nullopt, gate_rule.limit);
    u = at::clamp(up, -gate_rule.limit, gate_rule.limit);
    share = at::sigmoid(g * gate_rule.alpha);
  }
};

}  // namespace

at::Tensor ClampedGateForward(const at::Tensor& gate_up, const ClampedGate& gate) {
  const ClampedParts p(gate_up, gate);
  return (p.g * p.share * (p.u + 1)).to(gate_up.scalar_type());
}

at::Tensor ClampedGateBackward(const at::Tensor& gate_up, const at::Tensor& d_out, const ClampedGate& gate) {
  const ClampedParts p(gate_up, gate);
  const at::Tensor d = d_out.to(p.g.scalar_type());
  // A limit that is reached passes gradient, one that is exceeded does not, as clamp has it.
  const at::Tensor d_gate = d * (p.u + 1) * p.share * (p.g * (1 - p.share) * gate.alpha + 1) * (p.gate <= gate.limit);
  const at::Tensor d_up = d * p.g * p.share * (p.up.abs() <= gate.limit);
  return at::stack({d_gate, d_up}, 2).view(gate_up.sizes()).to(gate_up.scalar_type());
}

}  // namespace trireme
