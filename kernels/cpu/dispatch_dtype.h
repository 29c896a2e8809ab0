// kernels/cpu/dispatch_dtype.h
// Number formats of CPU tensors: a generic lambda called with the storage type, bfloat16 widened and narrowed. Included
// by .cc files only.
#ifndef TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_
#define TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels/base/ops.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/loops.h"
#include "launch/base/status.h"

namespace trireme {

// body(T{}) with T = float, double or Bf16.
template <typename Body>
void DispatchDtype(at::ScalarType dtype, Body&& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(Bf16{});
    default:
      TRIREME_CHECK(false, "unsupported dtype ", static_cast<int>(dtype));
  }
}

template <typename T>
T* Data(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

template <typename T>
using Arithmetic = typename ArithmeticOf<T>::Type;

// A CPU without wide bfloat16 units multiplies bfloat16 some 20 times slower than float32: convert, compute, round
// once. x, if bfloat16 as float32, packed.
inline at::Tensor Widened(const at::Tensor& x) {
  if (x.scalar_type() != at::kBFloat16) return x;
  at::Tensor wide = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  CopyConverted(x.contiguous(), wide);
  return wide;
}

// x rounded to `dtype`.
inline at::Tensor Narrowed(const at::Tensor& x, at::ScalarType dtype) {
  if (x.scalar_type() == dtype) return x;
  at::Tensor narrow = at::empty(x.sizes(), x.options().dtype(dtype));
  CopyConverted(x, narrow);
  return narrow;
}

// Rows that one task of a row-wise kernel takes: about 64 K elements, and never depending on the number of threads.
inline int64_t RowGrain(int64_t width) { return width >= 32768 ? 1 : 32768 / (width < 1 ? 1 : width); }

}  // namespace trireme

#endif  // TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_
