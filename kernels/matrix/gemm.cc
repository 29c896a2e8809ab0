#include "kernels/matrix/gemm.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/cpu/loops.h"
#include "kernels/matrix/gemm_backend.h"
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

// The libraries that are there. Double precision: MKL on Intel's processors, OpenBLAS on others, where MKL is slower.
struct Libraries {
  GemmBackend libtorch = LibtorchBackend();
  std::vector<GemmBackend> openblas;  // at most one
  Libraries() {
#if TRIREME_OPENBLAS
    openblas.push_back(OpenBlasBackend());
#endif
  }
  const GemmBackend& twofold() const { return IsIntel() || openblas.empty() ? libtorch : openblas.front(); }
};

const Libraries& AllLibraries() {
  static const Libraries libraries;
  return libraries;
}

ProductLibrary chosen = ProductLibrary::kOwn;

const GemmBackend& Single() {
  const Libraries& libraries = AllLibraries();
  return chosen == ProductLibrary::kOpenBlas ? libraries.openblas.front() : libraries.libtorch;
}

// An operand in float32, packed where it has to be widened.
class Wide {
 public:
  Wide(int64_t rows, int64_t columns, const float* data, int64_t ld) : data_(data), ld_(ld) {}
  Wide(int64_t rows, int64_t columns, const Bf16* data, int64_t ld) : ld_(columns) {
    copy_.resize(static_cast<size_t>(rows * columns));
    for (int64_t i = 0; i < rows; ++i) Loops().bf16.widen(columns, data + i * ld, copy_.data() + i * columns);
    data_ = copy_.data();
  }
  const float* data() const { return data_; }
  int64_t ld() const { return ld_; }

 private:
  std::vector<float> copy_;
  const float* data_;
  int64_t ld_;
};

template <typename A, typename B>
void LibraryGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a, int64_t lda,
                 const B* b, int64_t ldb, bool add, float* c, int64_t ldc) {
  const bool swap_a = transpose_a == Transpose::kYes, swap_b = transpose_b == Transpose::kYes;
  const Wide wide_a(swap_a ? k : m, swap_a ? m : k, a, lda), wide_b(swap_b ? n : k, swap_b ? k : n, b, ldb);
  Single().single(transpose_a, transpose_b, m, n, k, wide_a.data(), wide_a.ld(), wide_b.data(), wide_b.ld(), add, c,
                  ldc);
}

}  // namespace

absl::Status UseProducts(ProductLibrary library) {
  if (library == ProductLibrary::kMkl && !LibtorchHasMkl())
    return Error(ExitCode::kConfig, "kernels.products: MKL is not in this build's libtorch; OWN is always there");
  if (library == ProductLibrary::kOpenBlas && AllLibraries().openblas.empty())
    return Error(ExitCode::kConfig, "kernels.products: OPENBLAS is not in this build; OWN is always there");
  AllLibraries();  // Set up before anything multiplies.
  chosen = library;
  return absl::OkStatus();
}

std::string ProductsName() {
  return chosen == ProductLibrary::kOwn ? absl::StrCat("own products, ", Loops().name) : Single().description;
}

template <typename A, typename B, typename C>
void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a, int64_t lda,
          const B* b, int64_t ldb, bool add, C* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<C, double>) {
    AllLibraries().twofold().twofold(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  } else if (chosen == ProductLibrary::kOwn) {
    OwnGemm(Products(), transpose_a, transpose_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  } else {
    LibraryGemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  }
}

namespace {

// Own products: where C is cut in rows, B is packed once for all of them unless it is too large to be held twice.
template <typename A, typename B>
void ParallelOwnGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a,
                     int64_t lda, const B* b, int64_t ldb, bool add, float* c, int64_t ldc) {
  constexpr int64_t kSharedElements = int64_t{1} << 22;  // 16 MiB
  static thread_local PackedRight shared;
  const CpuProducts& p = Products();
  const ProductPieces piece = CutProduct(p, m, n, k, CpuThreads());
  const int64_t across = (n + piece.columns - 1) / piece.columns, down = (m + piece.rows - 1) / piece.rows;
  const bool share = down > 1 && n * k <= kSharedElements && k > 0;
  PackedRight& packed = shared;  // this thread's, for all
  if (share) {
    packed.Resize(p, k, n);
    ParallelRanges(n, 2 * p.tile_columns,
                   [&](int64_t first, int64_t end) { PackRight(p, transpose_b, b, ldb, first, end, &packed); });
  }
  ParallelTasks(across * down, [&](int64_t task) {
    const int64_t i = task / across * piece.rows, j = task % across * piece.columns;
    const int64_t rows = std::min(piece.rows, m - i), columns = std::min(piece.columns, n - j);
    const A* a_part = a + (transpose_a == Transpose::kNo ? i * lda : i);
    if (share) return OwnGemm(p, transpose_a, rows, columns, k, a_part, lda, packed, j, add, c + i * ldc + j, ldc);
    const B* b_part = b + (transpose_b == Transpose::kNo ? j : j * ldb);
    OwnGemm(p, transpose_a, transpose_b, rows, columns, k, a_part, lda, b_part, ldb, add, c + i * ldc + j, ldc);
  });
}

}  // namespace

template <typename A, typename B, typename C>
void ParallelGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a,
                  int64_t lda, const B* b, int64_t ldb, bool add, C* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if constexpr (!std::is_same_v<C, double>) {
    if (chosen == ProductLibrary::kOwn)
      return ParallelOwnGemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  }
  // The longer side is cut: each thread then packs only its part of that operand. Pieces are multiples of the widest
  // register tile.
  constexpr int64_t kTile = 48;
  const bool cut_rows = m >= n;
  const int64_t length = cut_rows ? m : n, threads = CpuThreads();
  const int64_t piece = ((length + threads - 1) / threads + kTile - 1) / kTile * kTile;
  ParallelRanges(length, piece, [&](int64_t begin, int64_t end) {
    if (cut_rows) {
      const A* a_part = a + (transpose_a == Transpose::kNo ? begin * lda : begin);
      Gemm(transpose_a, transpose_b, end - begin, n, k, a_part, lda, b, ldb, add, c + begin * ldc, ldc);
    } else {
      const B* b_part = b + (transpose_b == Transpose::kNo ? begin : begin * ldb);
      Gemm(transpose_a, transpose_b, m, end - begin, k, a, lda, b_part, ldb, add, c + begin, ldc);
    }
  });
}

void ParallelGram(int64_t m, int64_t k, const float* a, int64_t lda, float* c, int64_t ldc) {
  // A multiple of all tiles.
  constexpr int64_t kPiece = 96;
  if (chosen != ProductLibrary::kOwn || k == 0)
    return ParallelGemm(Transpose::kNo, Transpose::kYes, m, m, k, a, lda, a, lda, /*add=*/false, c, ldc);
  const CpuProducts& p = Products();
  PackedRight packed;
  packed.Resize(p, k, m);
  ParallelRanges(m, kPiece,
                 [&](int64_t first, int64_t end) { PackRight(p, Transpose::kYes, a, lda, first, end, &packed); });
  // Pieces on and below the diagonal, row by row.
  const int64_t pieces = (m + kPiece - 1) / kPiece;
  std::vector<std::pair<int64_t, int64_t>> lower;
  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t j = 0; j <= i; ++j) lower.emplace_back(i * kPiece, j * kPiece);
  }
  ParallelTasks(static_cast<int64_t>(lower.size()), [&](int64_t task) {
    const auto [row, column] = lower[static_cast<size_t>(task)];
    const int64_t rows = std::min(kPiece, m - row), columns = std::min(kPiece, m - column);
    OwnGemm(p, Transpose::kNo, rows, columns, k, a + row * lda, lda, packed, column, /*add=*/false,
            c + row * ldc + column, ldc);
    if (row == column) return;
    for (int64_t i = row; i < row + rows; ++i) {
      for (int64_t j = column; j < column + columns; ++j) c[j * ldc + i] = c[i * ldc + j];
    }
  });
}

template <typename T>
RightOperand<T>::RightOperand() : packed_(std::make_unique<PackedRight>()) {}
template <typename T>
RightOperand<T>::~RightOperand() = default;

template <typename T>
void RightOperand<T>::Set(Transpose transpose, int64_t k, int64_t n, const T* b, int64_t ldb) {
  transpose_ = transpose;
  b_ = b;
  ldb_ = ldb;
  if constexpr (std::is_same_v<T, float>) {
    if (chosen != ProductLibrary::kOwn) return;
    packed_->Resize(Products(), k, n);
    PackRight(Products(), transpose, b, ldb, 0, n, packed_.get());
  }
}

template <typename T>
void RightOperand<T>::Multiply(Transpose transpose_a, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
                               bool add, T* c, int64_t ldc) const {
  if constexpr (std::is_same_v<T, float>) {
    if (chosen == ProductLibrary::kOwn)
      return OwnGemm(Products(), transpose_a, m, n, k, a, lda, *packed_, 0, add, c, ldc);
  }
  Gemm(transpose_a, transpose_, m, n, k, a, lda, b_, ldb_, add, c, ldc);
}

#define TRIREME_PRODUCT(A, B, C)                                                                                      \
  template void Gemm(Transpose, Transpose, int64_t, int64_t, int64_t, const A*, int64_t, const B*, int64_t, bool, C*, \
                     int64_t);                                                                                        \
  template void ParallelGemm(Transpose, Transpose, int64_t, int64_t, int64_t, const A*, int64_t, const B*, int64_t,   \
                             bool, C*, int64_t)
TRIREME_PRODUCT(float, float, float);
TRIREME_PRODUCT(float, Bf16, float);
TRIREME_PRODUCT(Bf16, float, float);
TRIREME_PRODUCT(Bf16, Bf16, float);
TRIREME_PRODUCT(double, double, double);
#undef TRIREME_PRODUCT

template class RightOperand<float>;
template class RightOperand<double>;

}  // namespace trireme
