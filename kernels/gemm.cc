#include "kernels/gemm.h"

#include <algorithm>

#include "kernels/thread_pool.h"

namespace trireme {

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
