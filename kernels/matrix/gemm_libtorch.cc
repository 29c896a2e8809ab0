// Matrix products by the BLAS inside libtorch: MKL, whose functions libtorch_cpu.so exports, called directly; another
// one through ATen.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <utility>

#include "kernels/matrix/gemm_backend.h"

extern "C" {
__attribute__((weak)) void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                                  const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                                  const float* beta, float* c, const int* ldc);
__attribute__((weak)) void dgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                                  const double* alpha, const double* a, const int* lda, const double* b, const int* ldb,
                                  const double* beta, double* c, const int* ldc);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);
__attribute__((weak)) void MKL_Get_Version_String(char* text, int length);
}

namespace trireme {
namespace {

// MKL counts threads per calling thread.
void UseOneThread() {
  static thread_local bool done = false;
  if (done) return;
  MKL_Set_Num_Threads_Local(1);
  done = true;
}

// MKL is column-major: C^T = op(B)^T op(A)^T.
template <auto kFunction, typename T>
void MklGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
             const T* b, int64_t ldb, bool add, T* c, int64_t ldc) {
  UseOneThread();
  const auto code = [](Transpose transpose) { return transpose == Transpose::kNo ? 'N' : 'T'; };
  const char code_a = code(transpose_a), code_b = code(transpose_b);
  const int rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const int stride_a = static_cast<int>(lda), stride_b = static_cast<int>(ldb), stride_c = static_cast<int>(ldc);
  const T alpha = 1, beta = add ? T(1) : T(0);
  kFunction(&code_b, &code_a, &rows, &columns, &inner, &alpha, b, &stride_b, a, &stride_a, &beta, c, &stride_c);
}

template <typename T>
at::Tensor View(const T* data, int64_t rows, int64_t columns, int64_t stride, Transpose transpose) {
  if (transpose == Transpose::kYes) std::swap(rows, columns);
  at::Tensor view =
      at::from_blob(const_cast<T*>(data), {rows, columns}, {stride, 1}, c10::CppTypeToScalarType<T>::value);
  return transpose == Transpose::kYes ? view.t() : view;
}

template <typename T>
void AtenGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
              const T* b, int64_t ldb, bool add, T* c, int64_t ldc) {
  at::NoGradGuard no_grad;
  at::Tensor out = View(c, m, n, ldc, Transpose::kNo);
  at::addmm_out(out, out, View(a, m, k, lda, transpose_a), View(b, k, n, ldb, transpose_b), add ? 1 : 0);
}

}  // namespace

bool LibtorchHasMkl() {
  return &sgemm_ != nullptr && &dgemm_ != nullptr && &MKL_Set_Num_Threads_Local != nullptr &&
         &MKL_Get_Version_String != nullptr;
}

GemmBackend LibtorchBackend() {
  if (!LibtorchHasMkl()) return {"libtorch's BLAS", &AtenGemm<float>, &AtenGemm<double>};
  // Else the last bits could depend on where in memory the matrices lie: sharded and whole weights lie elsewhere.
  setenv("MKL_CBWR", "AUTO,STRICT", /*overwrite=*/0);
  char version[256] = {0};
  MKL_Get_Version_String(version, sizeof(version) - 1);
  return {version, &MklGemm<sgemm_, float>, &MklGemm<dgemm_, double>};
}

}  // namespace trireme
