// Own products: operands go block by block through buffers that stay in a core's second-level cache, from which tiles
// are computed (kernels/cpu/products.h).
#include <algorithm>
#include <memory>

#include "kernels/cpu/loops.h"
#include "kernels/matrix/gemm_backend.h"

namespace trireme {
namespace {

constexpr int64_t kDepth = 384;                // of a block at most
constexpr int64_t kLeftRows = 96;              // of a block of A: 144 KiB at most
constexpr int64_t kRightElements = 384 * 384;  // of a block of B: 576 KiB

// The inner size is cut evenly. Nothing but k decides, since sums of blocks are added in their order.
int64_t BlockDepth(int64_t k) {
  const int64_t blocks = (k + kDepth - 1) / kDepth;
  return ((k + blocks - 1) / blocks + 15) / 16 * 16;
}

int64_t RightColumns(const CpuProducts& p, int64_t depth) {
  return kRightElements / depth / p.tile_columns * p.tile_columns;
}

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

thread_local PanelMemory left_scratch, right_scratch;

int64_t PanelElements(int64_t lines, int64_t width, int64_t depth) {
  return RoundUp(lines, width) * depth + kPanelSlack;
}

// A block of A for tiles: its rows where they lie, or panels.
struct LeftBlock {
  const float* data;
  int64_t lda;  // 0: panels
};

// Rows are read where they lie when k is contiguous, unless they would fall upon each other in the first-level cache.
template <typename T>
LeftBlock TakeLeft(const CpuProducts& p, Transpose transpose, int64_t rows, int64_t k, const T* a, int64_t lda,
                   float* scratch) {
  constexpr int64_t kCacheWay = 4096 / sizeof(float);
  if constexpr (std::is_same_v<T, float>) {
    if (transpose == Transpose::kNo && lda % kCacheWay != 0) return {a, lda};
  }
  p.Of(T()).pack_left(transpose == Transpose::kNo, rows, k, a, lda, scratch);
  return {scratch, 0};
}

// A block of B: its panels, which hold `k` rows or more than are multiplied.
struct RightBlock {
  const float* data;
  int64_t k;
};

// All tiles of a block of A and one of B.
void MultiplyBlocks(const CpuProducts& p, int64_t rows, int64_t columns, int64_t k, LeftBlock left, RightBlock right,
                    bool add, float* c, int64_t ldc) {
  for (int64_t i = 0; i < rows; i += p.tile_rows) {
    const int64_t some_rows = std::min(p.tile_rows, rows - i);
    for (int64_t j = 0; j < columns; j += p.tile_columns) {
      const int64_t some_columns = std::min(p.tile_columns, columns - j);
      const float* panel = right.data + j * right.k;
      float* out = c + i * ldc + j;
      if (left.lda == 0) {
        p.tile(k, left.data + i * k, panel, some_rows, some_columns, add, out, ldc);
      } else {
        p.tile_of_rows(k, left.data + i * left.lda, left.lda, panel, some_rows, some_columns, add, out, ldc);
      }
    }
  }
}

void ClearUnlessAdded(int64_t m, int64_t n, bool add, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m && !add; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0.0f);
}

template <typename T>
const T* Block(const T* matrix, int64_t ld, Transpose transpose, int64_t row, int64_t column) {
  return transpose == Transpose::kNo ? matrix + row * ld + column : matrix + column * ld + row;
}

// Few rows and columns whose k is contiguous: B is read along its lines, each to its end, and no panels are made.
template <typename B>
void MultiplyFew(const CpuProducts& p, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const B* b,
                 int64_t ldb, bool add, float* c, int64_t ldc) {
  constexpr int64_t kColumns = 16;
  const int64_t depth = BlockDepth(k);
  for (int64_t j = 0; j < n; j += kColumns) {
    for (int64_t k0 = 0; k0 < k; k0 += depth) {
      const int64_t columns = std::min(kColumns, n - j), some = std::min(depth, k - k0);
      p.Of(B()).few_rows(m, columns, some, a + k0, lda, b + j * ldb + k0, ldb, add || k0 > 0, c + j, ldc);
    }
  }
}

}  // namespace

template <typename A, typename B>
void OwnGemm(const CpuProducts& p, Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k,
             const A* a, int64_t lda, const B* b, int64_t ldb, bool add, float* c, int64_t ldc) {
  if (k == 0) return ClearUnlessAdded(m, n, add, c, ldc);
  if (m <= p.most_few_rows && transpose_a == Transpose::kNo && transpose_b == Transpose::kYes) {
    if constexpr (std::is_same_v<A, float>) {
      MultiplyFew(p, m, n, k, a, lda, b, ldb, add, c, ldc);
    } else {
      float* wide = left_scratch.Take(m * k);
      for (int64_t i = 0; i < m; ++i) Loops().bf16.widen(k, a + i * lda, wide + i * k);
      MultiplyFew(p, m, n, k, wide, k, b, ldb, add, c, ldc);
    }
    return;
  }
  // Some rows are packed once, and each panel of B is used while it is in the first-level cache.
  const bool some_rows = m <= kLeftRows;
  const int64_t depth = BlockDepth(k), block_columns = some_rows ? p.tile_columns : RightColumns(p, depth);
  float* left_panels = left_scratch.Take(PanelElements(std::min(m, kLeftRows), p.tile_rows, depth));
  float* right_panels = right_scratch.Take(PanelElements(std::min(n, block_columns), p.tile_columns, depth));
  for (int64_t k0 = 0; k0 < k; k0 += depth) {
    const int64_t some = std::min(depth, k - k0);
    LeftBlock left = {};
    if (some_rows) left = TakeLeft(p, transpose_a, m, some, Block(a, lda, transpose_a, 0, k0), lda, left_panels);
    for (int64_t j0 = 0; j0 < n; j0 += block_columns) {
      const int64_t columns = std::min(block_columns, n - j0);
      p.Of(B()).pack_right(transpose_b == Transpose::kYes, columns, some, Block(b, ldb, transpose_b, k0, j0), ldb,
                           right_panels);
      for (int64_t i0 = 0; i0 < m; i0 += kLeftRows) {
        const int64_t rows = std::min(kLeftRows, m - i0);
        if (!some_rows)
          left = TakeLeft(p, transpose_a, rows, some, Block(a, lda, transpose_a, i0, k0), lda, left_panels);
        MultiplyBlocks(p, rows, columns, some, left, {right_panels, some}, add || k0 > 0, c + i0 * ldc + j0, ldc);
      }
    }
  }
}

void PackedRight::Resize(const CpuProducts& p, int64_t new_k, int64_t new_n) {
  k = new_k;
  n = new_n;
  panels.Take(RoundUp(n, p.tile_columns) * k + kPanelSlack);
}

template <typename B>
void PackRight(const CpuProducts& p, Transpose transpose, const B* b, int64_t ldb, int64_t first, int64_t end,
               PackedRight* packed) {
  const int64_t k = packed->k, depth = BlockDepth(k), width = RoundUp(packed->n, p.tile_columns);
  for (int64_t k0 = 0; k0 < k; k0 += depth) {
    const int64_t some = std::min(depth, k - k0);
    p.Of(B()).pack_right(transpose == Transpose::kYes, end - first, some, Block(b, ldb, transpose, k0, first), ldb,
                         packed->panels.data() + k0 * width + first * some);
  }
}

template <typename A>
void OwnGemm(const CpuProducts& p, Transpose transpose_a, int64_t m, int64_t n, int64_t k, const A* a, int64_t lda,
             const PackedRight& packed, int64_t first, bool add, float* c, int64_t ldc) {
  if (k == 0) return ClearUnlessAdded(m, n, add, c, ldc);
  const int64_t depth = BlockDepth(packed.k), width = RoundUp(packed.n, p.tile_columns);
  float* left_panels = left_scratch.Take(PanelElements(std::min(m, kLeftRows), p.tile_rows, depth));
  // A block of C stays in the second-level cache while all of k is added to it; B comes from the next level.
  constexpr int64_t kColumns = 1024;
  for (int64_t j0 = 0; j0 < n; j0 += kColumns) {
    for (int64_t i0 = 0; i0 < m; i0 += kLeftRows) {
      const int64_t rows = std::min(kLeftRows, m - i0), columns = std::min(kColumns, n - j0);
      for (int64_t k0 = 0; k0 < k; k0 += depth) {
        const int64_t some = std::min(depth, k - k0), right_k = std::min(depth, packed.k - k0);
        const RightBlock right = {packed.panels.data() + k0 * width + (first + j0) * right_k, right_k};
        const LeftBlock left =
            TakeLeft(p, transpose_a, rows, some, Block(a, lda, transpose_a, i0, k0), lda, left_panels);
        MultiplyBlocks(p, rows, columns, some, left, right, add || k0 > 0, c + i0 * ldc + j0, ldc);
      }
    }
  }
}

ProductPieces CutProduct(const CpuProducts& p, int64_t m, int64_t n, int64_t k, int64_t threads) {
  if (threads == 1 || k == 0) return {m, n};
  // In multiply-adds: packing an element takes as long; and threads end so much of a task apart.
  constexpr double kPacking = 10, kJitter = 0.15;
  ProductPieces best = {m, n};
  double best_time = -1;
  const int64_t most = 8 * threads, block_columns = RightColumns(p, BlockDepth(k));
  for (int64_t across = 1; across <= most; ++across) {
    const int64_t columns = RoundUp((n + across - 1) / across, p.tile_columns);
    if (across > 1 && columns >= n) break;
    const int64_t column_pieces = (n + columns - 1) / columns;
    for (int64_t down = 1; down * column_pieces <= most; ++down) {
      const int64_t rows = RoundUp((m + down - 1) / down, p.tile_rows);
      if (down > 1 && rows >= m) break;
      const int64_t row_pieces = (m + rows - 1) / rows, tasks = row_pieces * column_pieces;
      const int64_t times_left = (columns + block_columns - 1) / block_columns;
      const auto r = static_cast<double>(std::min(rows, m)), c = static_cast<double>(std::min(columns, n));
      const double task = r * c + kPacking * (r * static_cast<double>(times_left) + c);
      const int64_t of_a_thread = (tasks + threads - 1) / threads;
      const double time = task * (static_cast<double>(of_a_thread) + kJitter);
      if (best_time >= 0 && time >= best_time) continue;
      best_time = time;
      best = {rows, columns};
    }
  }
  return best;
}

#define TRIREME_RIGHT(B)                                                                                            \
  template void PackRight(const CpuProducts&, Transpose, const B*, int64_t, int64_t, int64_t, PackedRight*);        \
  template void OwnGemm(const CpuProducts&, Transpose, Transpose, int64_t, int64_t, int64_t, const float*, int64_t, \
                        const B*, int64_t, bool, float*, int64_t);                                                  \
  template void OwnGemm(const CpuProducts&, Transpose, Transpose, int64_t, int64_t, int64_t, const Bf16*, int64_t,  \
                        const B*, int64_t, bool, float*, int64_t)
TRIREME_RIGHT(float);
TRIREME_RIGHT(Bf16);
#undef TRIREME_RIGHT
template void OwnGemm(const CpuProducts&, Transpose, int64_t, int64_t, int64_t, const float*, int64_t,
                      const PackedRight&, int64_t, bool, float*, int64_t);
template void OwnGemm(const CpuProducts&, Transpose, int64_t, int64_t, int64_t, const Bf16*, int64_t,
                      const PackedRight&, int64_t, bool, float*, int64_t);

}  // namespace trireme
