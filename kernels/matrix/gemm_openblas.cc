// Matrix products by OpenBLAS from its wheel, whose symbols carry the prefix scipy_ (so libtorch keeps its own BLAS).
#include "kernels/matrix/gemm_backend.h"

extern "C" {
void scipy_cblas_sgemm(int order, int transa, int transb, int m, int n, int k, float alpha, const float* a, int lda,
                       const float* b, int ldb, float beta, float* c, int ldc);
void scipy_cblas_dgemm(int order, int transa, int transb, int m, int n, int k, double alpha, const double* a, int lda,
                       const double* b, int ldb, double beta, double* c, int ldc);
void scipy_openblas_set_num_threads(int threads);
const char* scipy_openblas_get_config();
}

namespace trireme {
namespace {

constexpr int kRowMajor = 101;
int Code(Transpose transpose) { return transpose == Transpose::kNo ? 111 : 112; }

template <auto kFunction, typename T>
void OpenBlasGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a,
                  int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc) {
  kFunction(kRowMajor, Code(transpose_a), Code(transpose_b), m, n, k, T(1), a, lda, b, ldb, add ? T(1) : T(0), c, ldc);
}

}  // namespace

GemmBackend OpenBlasBackend() {
  scipy_openblas_set_num_threads(1);
  return {scipy_openblas_get_config(), &OpenBlasGemm<scipy_cblas_sgemm, float>,
          &OpenBlasGemm<scipy_cblas_dgemm, double>};
}

}  // namespace trireme
