#include "kernels/matrix/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm_backend.h"
#include "launch/base/log.h"
#include "launch/base/status.h"

namespace trireme {
namespace {

bool IsIntel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

const GemmBackend& Backend() {
  static const GemmBackend backend = [] {
    std::vector<GemmBackend> backends = {LibtorchBackend()};
#if TRIREME_OPENBLAS
    backends.push_back(OpenBlasBackend());
#endif
    const char* wish = std::getenv("TRIREME_BLAS");
    if (wish == nullptr || *wish == 0) return IsIntel() ? backends.front() : backends.back();
    std::string known;
    for (const GemmBackend& one : backends) {
      if (one.name == wish) return one;
      absl::StrAppend(&known, known.empty() ? "" : ", ", one.name);
    }
    WriteLog(Severity::kError, absl::StrCat("TRIREME_BLAS: is \"", wish, "\"; there are: ", known));
    std::_Exit(static_cast<int>(ExitCode::kConfig));
  }();
  return backend;
}

}  // namespace

void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  Backend().single(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  Backend().twofold(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const char* BlasName() { return Backend().description.c_str(); }

template <typename T>
void ParallelGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a,
                  int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const int64_t threads = CpuThreads();
  // The longer side is cut: each thread then packs only its part of that operand. Pieces are multiples of the widest
  // register tile.
  constexpr int64_t kTile = 48;
  const bool cut_rows = m >= n;
  const int64_t length = cut_rows ? m : n;
  int64_t piece = (length + threads - 1) / threads;
  piece = (piece + kTile - 1) / kTile * kTile;
  ParallelRanges(length, piece, [&](int64_t begin, int64_t end) {
    if (cut_rows) {
      const T* a_part = a + (transpose_a == Transpose::kNo ? begin * lda : begin);
      Gemm(transpose_a, transpose_b, end - begin, n, k, T(1), a_part, lda, b, ldb, beta, c + begin * ldc, ldc);
    } else {
      const T* b_part = b + (transpose_b == Transpose::kNo ? begin : begin * ldb);
      Gemm(transpose_a, transpose_b, m, end - begin, k, T(1), a, lda, b_part, ldb, beta, c + begin, ldc);
    }
  });
}

template void ParallelGemm(Transpose, Transpose, int64_t, int64_t, int64_t, const float*, int64_t, const float*,
                           int64_t, float, float*, int64_t);
template void ParallelGemm(Transpose, Transpose, int64_t, int64_t, int64_t, const double*, int64_t, const double*,
                           int64_t, double, double*, int64_t);

}  // namespace trireme
