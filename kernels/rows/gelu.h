// kernels/rows/gelu.h
// GELU (arXiv 1606.08415) of an MLP without a gate. Tensors and dtypes as in kernels/base/ops.h; libtorch's arithmetic
// on CPU and GPU.
#ifndef TRIREME_KERNELS_ROWS_GELU_H_
#define TRIREME_KERNELS_ROWS_GELU_H_

#include <ATen/core/Tensor.h>

namespace trireme {

enum class Gelu { kErf, kTanh };  // exact, and by the tanh formula

at::Tensor GeluForward(const at::Tensor& x, Gelu kind);
at::Tensor GeluBackward(const at::Tensor& x, const at::Tensor& d_out, Gelu kind);

}  // namespace trireme

#endif  // TRIREME_KERNELS_ROWS_GELU_H_
