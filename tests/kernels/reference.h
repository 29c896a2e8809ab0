// tests/kernels/reference.h
// What the operations of kernels/base/ops.h mean, in plain libtorch and float64: slow, obvious, differentiable by
// autograd. Linked by tests only.
#ifndef TRIREME_TESTS_KERNELS_REFERENCE_H_
#define TRIREME_TESTS_KERNELS_REFERENCE_H_

#include <ATen/core/Tensor.h>

#include "kernels/base/nf4_math.h"
#include "kernels/base/ops.h"
#include "kernels/rows/activation.h"

namespace trireme::reference {

// All tensors float64.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);  // [T, H], [H] -> [T, H]
at::Tensor LayerNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);
at::Tensor Activated(const at::Tensor& x, Activation activation);
at::Tensor Gated(const at::Tensor& gate_up, Activation activation);  // [T, 2F] -> [T, F]
// heads [T, heads, head_dim], as Transformers writes it: x cos + rotate_half(x) sin.
at::Tensor Rope(const at::Tensor& heads, const at::Tensor& positions, const RopeTable& table);

struct HeadSums {
  at::Tensor cross_entropy, squared_lse;  // scalars: sums over the rows whose target is not negative
};
HeadSums LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets);

// x [n], n a multiple of 64 -> 4-bit codes [n] and scales [n / 64], step by step as bitsandbytes' Python does it.
struct Nf4 {
  at::Tensor codes;   // uint8
  at::Tensor absmax;  // float32
};
Nf4 QuantizeNf4(const at::Tensor& x);
at::Tensor DequantizeNf4(const Nf4& nf4);  // [n] float32

}  // namespace trireme::reference

#endif  // TRIREME_TESTS_KERNELS_REFERENCE_H_
