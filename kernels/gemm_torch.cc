// Matrix products by the BLAS inside libtorch, where OpenBLAS is not there.
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>

#include "kernels/gemm.h"

namespace trireme {
namespace {

template <typename T>
at::Tensor View(const T* data, int64_t rows, int64_t columns, int64_t stride, Transpose transpose) {
  if (transpose == Transpose::kYes) std::swap(rows, columns);
  at::Tensor view =
      at::from_blob(const_cast<T*>(data), {rows, columns}, {stride, 1}, c10::CppTypeToScalarType<T>::value);
  return transpose == Transpose::kYes ? view.t() : view;
}

template <typename T>
void TorchGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
               int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  at::NoGradGuard no_grad;
  at::Tensor out = View(c, m, n, ldc, Transpose::kNo);
  at::addmm_out(out, out, View(a, m, k, lda, transpose_a), View(b, k, n, ldb, transpose_b), beta, alpha);
}

}  // namespace

void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  TorchGemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  TorchGemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void SetBlasThreads(int) {}  // libtorch's own setting covers it.

const char* BlasName() { return "libtorch"; }

}  // namespace trireme
