// kernels/rows/layer_norm.h
// LayerNorm (arXiv 1607.06450) with bias. Tensors and dtypes as in kernels/base/ops.h; on GPUs composed of libtorch's.
#ifndef TRIREME_KERNELS_ROWS_LAYER_NORM_H_
#define TRIREME_KERNELS_ROWS_LAYER_NORM_H_

#include <ATen/core/Tensor.h>

namespace trireme {

struct LayerNormResult {
  at::Tensor y;           // [T, H]: (x - mean) * rstd * weight + bias, rounded once
  at::Tensor mean, rstd;  // [T], arithmetic type
};
LayerNormResult LayerNormForward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

// Returns dx; adds into d_weight and d_bias [H] (arithmetic type; each may be null).
at::Tensor LayerNormBackward(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
                             const at::Tensor& weight, const at::Tensor& dy, at::Tensor* d_weight, at::Tensor* d_bias);

}  // namespace trireme

#endif  // TRIREME_KERNELS_ROWS_LAYER_NORM_H_
