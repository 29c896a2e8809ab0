#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/matrix/gemm.h"

namespace trireme {
namespace {

// c (arithmetic type) = op(a) op(b), or c += with `add`.
void CpuGemm(Transpose transpose_a, Transpose transpose_b, const at::Tensor& a, const at::Tensor& b, bool add,
             at::Tensor& c) {
  const int64_t m = c.size(0), n = c.size(1);
  const int64_t k = transpose_a == Transpose::kNo ? a.size(1) : a.size(0);
  const auto multiply = [&](auto type_a, auto type_b, auto type_c) {
    ParallelGemm(transpose_a, transpose_b, m, n, k, Data<decltype(type_a)>(a), a.stride(0), Data<decltype(type_b)>(b),
                 b.stride(0), add, Data<decltype(type_c)>(c), c.stride(0));
  };
  const bool narrow_a = a.scalar_type() == at::kBFloat16, narrow_b = b.scalar_type() == at::kBFloat16;
  if (c.scalar_type() == at::kDouble) return multiply(double{}, double{}, double{});
  if (narrow_a && narrow_b) return multiply(Bf16{}, Bf16{}, float{});
  if (narrow_a) return multiply(Bf16{}, float{}, float{});
  if (narrow_b) return multiply(float{}, Bf16{}, float{});
  multiply(float{}, float{}, float{});
}

void CheckSizes(const char* operation, int64_t inner_a, int64_t inner_b) {
  TRIREME_CHECK(inner_a == inner_b, operation, ": inner sizes ", inner_a, " and ", inner_b, " differ");
}

}  // namespace

at::ScalarType ArithmeticType(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor MatmulTransposed(const at::Tensor& x, const at::Tensor& w, const at::Tensor& residual) {
  CheckSizes("x w^T", x.size(1), w.size(1));
  if (x.is_cuda()) return residual.defined() ? at::addmm(residual, x, w.t()) : at::mm(x, w.t());
  at::Tensor y = at::empty({x.size(0), w.size(0)}, x.options().dtype(ArithmeticType(x.scalar_type())));
  if (residual.defined()) CopyConverted(residual, y);
  CpuGemm(Transpose::kNo, Transpose::kYes, x, w, residual.defined(), y);
  return Narrowed(y, x.scalar_type());
}

at::Tensor Gram(const at::Tensor& x) {
  at::Tensor gram = at::empty({x.size(0), x.size(0)}, x.options());
  ParallelGram(x.size(0), x.size(1), Data<float>(x), x.stride(0), Data<float>(gram), gram.stride(0));
  return gram;
}

void SetMatmulTransposed(at::Tensor y, const at::Tensor& x, const at::Tensor& w) {
  CheckSizes("y = x w^T", x.size(1), w.size(1));
  CpuGemm(Transpose::kNo, Transpose::kYes, x, w, /*add=*/false, y);
}

at::Tensor Matmul(const at::Tensor& dy, const at::Tensor& w) {
  CheckSizes("dy w", dy.size(1), w.size(0));
  if (dy.is_cuda()) return at::mm(dy, w);
  at::Tensor dx = at::empty({dy.size(0), w.size(1)}, dy.options().dtype(ArithmeticType(dy.scalar_type())));
  CpuGemm(Transpose::kNo, Transpose::kNo, dy, w, /*add=*/false, dx);
  return Narrowed(dx, dy.scalar_type());
}

void AddMatmulTransposed(at::Tensor y, const at::Tensor& x, const at::Tensor& w) {
  CheckSizes("y += x w^T", x.size(1), w.size(1));
  if (y.is_cuda()) {
    y.addmm_(x, w.t());
  } else if (y.scalar_type() == at::kBFloat16) {
    y.add_(MatmulTransposed(x, w));
  } else {
    CpuGemm(Transpose::kNo, Transpose::kYes, x, w, /*add=*/true, y);
  }
}

void AddMatmul(at::Tensor dx, const at::Tensor& dy, const at::Tensor& w) {
  CheckSizes("dx += dy w", dy.size(1), w.size(0));
  if (dx.is_cuda()) {
    dx.addmm_(dy, w);
  } else if (dx.scalar_type() == at::kBFloat16) {
    dx.add_(Matmul(dy, w));
  } else {
    CpuGemm(Transpose::kNo, Transpose::kNo, dy, w, /*add=*/true, dx);
  }
}

void AddOuterProduct(const at::Tensor& dy, const at::Tensor& x, at::Tensor& accumulator, bool overwrite) {
  CheckSizes("dy^T x", dy.size(0), x.size(0));
  if (dy.is_cuda()) {
    if (dy.scalar_type() == accumulator.scalar_type()) {
      overwrite ? at::mm_out(accumulator, dy.t(), x) : accumulator.addmm_(dy.t(), x);
    } else if (overwrite) {
      at::mm_out(accumulator, dy.t(), x, accumulator.scalar_type());
    } else {
      at::addmm_out(accumulator, accumulator, dy.t(), x, accumulator.scalar_type());
    }
    return;
  }
  CpuGemm(Transpose::kYes, Transpose::kNo, dy, x, /*add=*/!overwrite, accumulator);
}

}  // namespace trireme
