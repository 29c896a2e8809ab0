#include "kernels/experts/gate.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>

#include "kernels/cpu/dispatch_dtype.h"

namespace trireme {
namespace {

// ---- On a GPU: libtorch's arithmetic ----

// Gates and ups as they are and after their limits, in the arithmetic type.
struct ClampedParts {
  at::Tensor gate, up, g, u, share;
  ClampedParts(const at::Tensor& gate_up, const ClampedGate& rule) {
    const at::Tensor pairs =
        gate_up.to(ArithmeticType(gate_up.scalar_type())).view({gate_up.size(0), gate_up.size(1) / 2, 2});
    gate = pairs.select(2, 0);
    up = pairs.select(2, 1);
    g = at::clamp(gate, std::nullopt, rule.limit);
    u = at::clamp(up, -rule.limit, rule.limit);
    share = at::sigmoid(g * rule.alpha);
  }
};

at::Tensor Unweighted(const at::Tensor& gate_up, const ExpertGate& gate) {
  if (!gate.clamped.has_value()) return GatedForward(gate_up, gate.activation);
  const ClampedParts p(gate_up, *gate.clamped);
  return (p.g * p.share * (p.u + 1)).to(gate_up.scalar_type());
}

at::Tensor UnweightedGradient(const at::Tensor& gate_up, const at::Tensor& d_out, const ExpertGate& gate) {
  if (!gate.clamped.has_value()) return GatedBackward(gate_up, d_out, gate.activation);
  const ClampedParts p(gate_up, *gate.clamped);
  const at::Tensor d = d_out.to(p.g.scalar_type());
  const double alpha = gate.clamped->alpha, limit = gate.clamped->limit;
  const at::Tensor d_gate = d * (p.u + 1) * p.share * (p.g * (1 - p.share) * alpha + 1) * (p.gate <= limit);
  const at::Tensor d_up = d * p.g * p.share * (p.up.abs() <= limit);
  return at::stack({d_gate, d_up}, 2).view(gate_up.sizes()).to(gate_up.scalar_type());
}

at::Tensor Weighted(const at::Tensor& rows, const at::Tensor& weights) {
  return (rows * weights).to(rows.scalar_type());
}

// ---- On CPU ----

template <typename T>
const ExpertGateLoops<T, Arithmetic<T>>& GateLoops(const ExpertGate& gate) {
  if (gate.clamped.has_value()) return LoopsFor<T>().expert_clamped;
  return gate.activation == Activation::kSilu ? LoopsFor<T>().expert_swiglu : LoopsFor<T>().expert_geglu;
}

}  // namespace

at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate) {
  if (gate_up.is_cuda()) return Weighted(Unweighted(gate_up, gate), weights);
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
  ExpertGateGradients gradients;
  if (gate_up.is_cuda()) {
    const at::Tensor made = Unweighted(gate_up, gate);
    gradients.gate_up = UnweightedGradient(gate_up, Weighted(d_out, weights), gate);
    gradients.weights = at::sum(d_out.to(weights.scalar_type()) * made, {1}, /*keepdim=*/true);
    gradients.out = Weighted(made, weights);
    return gradients;
  }
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  gradients.gate_up = at::empty(gate_up.sizes(), gate_up.options());
  gradients.weights = at::empty(weights.sizes(), weights.options());
  gradients.out = at::empty({rows, width}, gate_up.options());
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
