#include "kernels/rows/layer_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"

namespace trireme {
namespace {

LayerNormResult OnDevice(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const at::ScalarType type = ArithmeticType(x.scalar_type());
  const auto [y, mean, rstd] = at::native_layer_norm(x.to(type), {x.size(1)}, weight.to(type), bias.to(type), eps);
  return {y.to(x.scalar_type()), mean.reshape({-1}), rstd.reshape({-1})};
}

at::Tensor BackwardOnDevice(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
                            const at::Tensor& weight, const at::Tensor& dy, at::Tensor* d_weight, at::Tensor* d_bias) {
  const at::ScalarType type = ArithmeticType(x.scalar_type());
  const at::Tensor values = weight.to(type);
  const auto [dx, dw, db] = at::native_layer_norm_backward(
      dy.to(type), x.to(type), {x.size(1)}, mean.unsqueeze(1), rstd.unsqueeze(1), values, /*bias=*/values,
      std::array<bool, 3>{true, d_weight != nullptr, d_bias != nullptr});
  if (d_weight != nullptr) d_weight->add_(dw);
  if (d_bias != nullptr) d_bias->add_(db);
  return dx.to(x.scalar_type());
}

}  // namespace

LayerNormResult LayerNormForward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  if (x.is_cuda()) return OnDevice(x, weight, bias, eps);
  const int64_t rows = x.size(0), width = x.size(1);
  LayerNormResult result;
  result.y = at::empty(x.sizes(), x.options());
  result.mean = at::empty({rows}, x.options().dtype(ArithmeticType(x.scalar_type())));
  result.rstd = at::empty({rows}, result.mean.options());
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    ParallelRanges(rows, RowGrain(width), [&](int64_t begin, int64_t end) {
      LoopsFor<T>().layer_norm(end - begin, width, Data<T>(x) + begin * width, Data<T>(weight), Data<T>(bias),
                               static_cast<C>(eps), Data<T>(result.y) + begin * width, Data<C>(result.mean) + begin,
                               Data<C>(result.rstd) + begin);
    });
  });
  return result;
}

at::Tensor LayerNormBackward(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
                             const at::Tensor& weight, const at::Tensor& dy, at::Tensor* d_weight, at::Tensor* d_bias) {
  if (x.is_cuda()) return BackwardOnDevice(x, mean, rstd, weight, dy, d_weight, d_bias);
  const int64_t rows = x.size(0), width = x.size(1);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    const int64_t grain = RowGrain(width);
    const int64_t parts = (rows + grain - 1) / grain;
    // Weight and bias gradients per part, added in order afterwards: the result does not depend on the number of
    // threads.
    at::Tensor partial = at::zeros({parts, 2, width}, mean.options());
    ParallelTasks(parts, [&](int64_t part) {
      const int64_t begin = part * grain, end = std::min(rows, begin + grain);
      C* sums = Data<C>(partial) + part * 2 * width;
      LoopsFor<T>().layer_norm_backward(end - begin, width, Data<T>(x) + begin * width, Data<C>(mean) + begin,
                                        Data<C>(rstd) + begin, Data<T>(weight), Data<T>(dy) + begin * width,
                                        Data<T>(dx) + begin * width, sums, sums + width);
    });
    const auto add = [&](at::Tensor* out, int64_t which) {
      if (out == nullptr) return;
      C* sum = Data<C>(*out);
      for (int64_t part = 0; part < parts; ++part) {
        const C* row = Data<C>(partial) + (2 * part + which) * width;
        for (int64_t i = 0; i < width; ++i) sum[i] += row[i];
      }
    };
    add(d_weight, 0);
    add(d_bias, 1);
  });
  return dx;
}

}  // namespace trireme
