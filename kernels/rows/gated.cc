#include <ATen/ops/empty.h>

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

}  // namespace trireme
