// kernels/matrix/gemm.h
// Matrix products on CPU memory, row-major. Single precision and double.
//
// Two libraries can be there: OpenBLAS, and MKL inside libtorch. Which one multiplies follows from the processor alone
// (MKL on Intel's, where it is up to a quarter faster; OpenBLAS on others, where MKL is slower), never from a
// measurement: a run that resumes must find the same last bits. The environment variable TRIREME_BLAS (openblas, mkl)
// overrides it.
#ifndef TRIREME_KERNELS_MATRIX_GEMM_H_
#define TRIREME_KERNELS_MATRIX_GEMM_H_

#include <cstdint>

namespace trireme {

enum class Transpose { kNo, kYes };

// C [m, n] = op(A) op(B) + beta * C in the calling thread, where op(A) is [m, k] and op(B) [k, n]. ld*: elements
// between rows as stored.
void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc);

// The same product, split over the thread pool by blocks of C (so that each element is summed by one thread, in one
// order).
template <typename T>
void ParallelGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a,
                  int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

const char* BlasName();  // For logs and benchmarks.

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_GEMM_H_
