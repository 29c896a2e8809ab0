// kernels/matrix/gemm_backend.h
// The BLAS libraries that kernels/matrix/gemm.h chooses from.
#ifndef TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_
#define TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_

#include <cstdint>
#include <string>

#include "kernels/matrix/gemm.h"

namespace trireme {

// Gemm() of one library, in the calling thread alone.
template <typename T>
using GemmFunction = void (*)(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                              const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

struct GemmBackend {
  std::string name;         // as TRIREME_BLAS names it
  std::string description;  // with version
  GemmFunction<float> single = nullptr;
  GemmFunction<double> twofold = nullptr;
};

GemmBackend OpenBlasBackend();  // of the wheel scipy-openblas32
GemmBackend LibtorchBackend();  // what libtorch was linked with: "mkl" on x86-64

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_
