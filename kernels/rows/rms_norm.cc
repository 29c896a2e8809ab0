#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {

RmsNormResult RmsNorm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps,
                      double offset) {
  if (x.is_cuda()) return cuda::RmsNorm(x, delta, weight, eps, offset);
  const int64_t rows = x.size(0), width = x.size(1);
  RmsNormResult result;
  result.h = delta.defined() ? at::empty(x.sizes(), x.options()) : x;
  result.y = at::empty(x.sizes(), x.options());
  result.rstd = at::empty({rows}, x.options().dtype(ArithmeticType(x.scalar_type())));
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    ParallelRanges(rows, RowGrain(width), [&](int64_t begin, int64_t end) {
      LoopsFor<T>().rms_norm(end - begin, width, Data<T>(x) + begin * width,
                             delta.defined() ? Data<T>(delta) + begin * width : nullptr, Data<T>(weight),
                             static_cast<C>(offset), static_cast<C>(eps), Data<T>(result.h) + begin * width,
                             Data<T>(result.y) + begin * width, Data<C>(result.rstd) + begin);
    });
  });
  return result;
}

at::Tensor RmsNormAgain(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, double offset) {
  if (h.is_cuda()) return cuda::RmsNormAgain(h, rstd, weight, offset);
  const int64_t rows = h.size(0), width = h.size(1);
  at::Tensor y = at::empty(h.sizes(), h.options());
  DispatchDtype(h.scalar_type(), [&](auto type) {
    using T = decltype(type);
    ParallelRanges(rows, RowGrain(width), [&](int64_t begin, int64_t end) {
      LoopsFor<T>().rms_norm_again(end - begin, width, Data<T>(h) + begin * width, Data<Arithmetic<T>>(rstd) + begin,
                                   Data<T>(weight), static_cast<Arithmetic<T>>(offset), Data<T>(y) + begin * width);
    });
  });
  return y;
}

at::Tensor RmsNormBackward(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& dy,
                           const at::Tensor& d_h, at::Tensor* d_weight, double offset) {
  if (h.is_cuda()) return cuda::RmsNormBackward(h, rstd, weight, dy, d_h, d_weight, offset);
  const int64_t rows = h.size(0), width = h.size(1);
  at::Tensor dx = at::empty(h.sizes(), h.options());
  DispatchDtype(h.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    const int64_t grain = RowGrain(width);
    const int64_t parts = (rows + grain - 1) / grain;
    // Weight gradients per part, added in order afterwards: the result does not depend on the number of threads.
    at::Tensor partial;
    if (d_weight != nullptr) partial = at::zeros({parts, width}, d_weight->options());
    ParallelTasks(parts, [&](int64_t part) {
      const int64_t begin = part * grain, end = std::min(rows, begin + grain);
      LoopsFor<T>().rms_norm_backward(
          end - begin, width, Data<T>(h) + begin * width, Data<C>(rstd) + begin, Data<T>(weight),
          static_cast<C>(offset), Data<T>(dy) + begin * width, d_h.defined() ? Data<T>(d_h) + begin * width : nullptr,
          Data<T>(dx) + begin * width, d_weight != nullptr ? Data<C>(partial) + part * width : nullptr);
    });
    if (d_weight == nullptr) return;
    for (int64_t part = 0; part < parts; ++part) {
      const C* row = Data<C>(partial) + part * width;
      C* sum = Data<C>(*d_weight);
      for (int64_t i = 0; i < width; ++i) sum[i] += row[i];
    }
  });
  return dx;
}

}  // namespace trireme
