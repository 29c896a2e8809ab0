// kernels/base/dropout.h
// Dropout (arXiv 1207.0580) whose choices follow from what an element is, not from where or when it is computed:
// layouts, recomputation and resumption drop the same ones. Tensors and dtypes as in kernels/base/ops.h.
#ifndef TRIREME_KERNELS_BASE_DROPOUT_H_
#define TRIREME_KERNELS_BASE_DROPOUT_H_

#include <ATen/core/Tensor.h>

#include "kernels/base/philox.h"

namespace trireme {

struct DropoutOptions {
  double rate = 0;  // in [0, 1)
  RandomKey key = {0, 0};
  int64_t first_column = 0;  // of x in the whole matrix
};

// x [T, K] with a share `rate` of its elements zero and the others divided by 1 - rate. tokens [T] int64: a number of
// each row that no other row of the training run has. The gradient is the same function of the gradient.
at::Tensor Dropout(const at::Tensor& x, const at::Tensor& tokens, const DropoutOptions& options);

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_DROPOUT_H_
