// kernels/rows/activation.h
// The activation of an MLP without a gate. Tensors and dtypes as in kernels/base/ops.h; libtorch's arithmetic on CPU
// and GPU.
#ifndef TRIREME_KERNELS_ROWS_ACTIVATION_H_
#define TRIREME_KERNELS_ROWS_ACTIVATION_H_

#include <ATen/core/Tensor.h>

#include "kernels/base/ops.h"

namespace trireme {

at::Tensor ActivationForward(const at::Tensor& x, Activation activation);
at::Tensor ActivationBackward(const at::Tensor& x, const at::Tensor& d_out, Activation activation);

}  // namespace trireme

#endif  // TRIREME_KERNELS_ROWS_ACTIVATION_H_
