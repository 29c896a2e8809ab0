// kernels/cpu/dispatch_dtype.h
// Calls a generic lambda with the storage type of a CPU tensor. Included by .cc files only.
#ifndef TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_
#define TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_

#include <ATen/core/Tensor.h>

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

// Rows that one task of a row-wise kernel takes: about 64 K elements, and never depending on the number of threads.
inline int64_t RowGrain(int64_t width) { return width >= 32768 ? 1 : 32768 / (width < 1 ? 1 : width); }

}  // namespace trireme

#endif  // TRIREME_KERNELS_CPU_DISPATCH_DTYPE_H_
