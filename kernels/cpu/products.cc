// Compiled once per instruction set with TRIREME_PRODUCTS naming the function that returns the table, under the same
// rules as loops.cc: an anonymous namespace and no template of the standard library.
#include "kernels/cpu/products.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace trireme {
namespace {

// The widest vectors of the instruction set, and tiles that leave a few registers for operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 12, kTileVectors = 2;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kTileRows = 6, kTileVectors = 2;  // 12 of 16
#else
constexpr int kLanes = 4, kTileRows = 4, kTileVectors = 2;  // 8 of 16
#endif
constexpr int kTileColumns = kTileVectors * kLanes;
constexpr int kMostFewRows = kLanes == 16 ? 8 : 4;  // beside a square of vectors

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Indices __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef Words UnalignedWords __attribute__((aligned(2), may_alias));
typedef uint16_t UnalignedHalves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vector LoadVector(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline Vector LoadVector(const Bf16* from) {
  const UnalignedHalves halves = *reinterpret_cast<const UnalignedHalves*>(from);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}
inline void StoreVector(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }

inline Vector Broadcast(const float* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_set1_ps(*from));
#elif defined(__AVX2__)
  return reinterpret_cast<Vector>(_mm256_broadcast_ss(from));
#else
  return Vector{*from, *from, *from, *from};
#endif
}

inline float LoadElement(float value) { return value; }
inline float LoadElement(Bf16 value) { return ToFloat(value); }

// Lanes of a, then of b, by their numbers.
inline Vector Shuffled(Vector a, Vector b, Indices lanes) {
#if defined(__clang__)  // which lacks GCC's operation
  Vector result = {};
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = lanes[lane] < kLanes ? a[lanes[lane]] : b[lanes[lane] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// One step of transposing rows: swaps, for each pair of rows `kDistance` apart, the lanes whose index has that bit in
// the upper row with those that do not in the lower.
template <int kDistance>
inline __attribute__((always_inline)) void Exchange(Vector* rows) {
  Indices low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = (lane & kDistance) != 0 ? kLanes + lane - kDistance : lane;
    high[lane] = (lane & kDistance) != 0 ? kLanes + lane : lane + kDistance;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kDistance) != 0) continue;
    const Vector upper = rows[i], lower = rows[i + kDistance];
    rows[i] = Shuffled(upper, lower, low);
    rows[i + kDistance] = Shuffled(upper, lower, high);
  }
}

inline __attribute__((always_inline)) void TransposeSquare(Vector* rows) {
  Exchange<1>(rows);
  Exchange<2>(rows);
  if constexpr (kLanes > 4) Exchange<4>(rows);
  if constexpr (kLanes > 8) Exchange<8>(rows);
}

// A panel of lines along which k is contiguous: squares are transposed in registers. A square wider than what is left
// of the panel writes into the next k, which is written later.
template <int kWidth, typename T>
void PackLines(int64_t lines, int64_t k, const T* from, int64_t stride, float* to) {
  int64_t p = 0;
  for (; p + kLanes <= k; p += kLanes) {
#pragma GCC unroll 4
    for (int first = 0; first < kWidth; first += kLanes) {
      Vector rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int line = first + i;
        rows[i] = line < kWidth && line < lines ? LoadVector(from + line * stride + p) : Vector{};
      }
      TransposeSquare(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) StoreVector(to + (p + i) * kWidth + first, rows[i]);
    }
  }
  for (; p < k; ++p) {
    for (int line = 0; line < kWidth; ++line)
      to[p * kWidth + line] = line < lines ? LoadElement(from[line * stride + p]) : 0.0f;
  }
}

// kPanels panels of neighbouring lines, for one k after another as they lie: reads of narrow panels would take a part
// of a cache line each, far from the next.
template <int kWidth, int kPanels, typename T>
void PackWholeNeighbours(int64_t k, const T* from, int64_t stride, float* to) {
  for (int64_t p = 0; p < k; ++p) {
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) {
#pragma GCC unroll 32
      for (int line = 0; line < kWidth; ++line)
        to[(panel * k + p) * kWidth + line] = LoadElement(from[p * stride + panel * kWidth + line]);
    }
  }
}

template <int kWidth, typename T>
void PackNeighbours(int64_t lines, int64_t k, const T* from, int64_t stride, float* to) {
  constexpr int kPanels = kWidth < 16 ? 4 : 1;
  int64_t first = 0;
  for (; first + kPanels * kWidth <= lines; first += kPanels * kWidth)
    PackWholeNeighbours<kWidth, kPanels>(k, from + first, stride, to + first * k);
  for (; first + kWidth <= lines; first += kWidth)
    PackWholeNeighbours<kWidth, 1>(k, from + first, stride, to + first * k);
  if (first == lines) return;
  for (int64_t p = 0; p < k; ++p) {
    for (int line = 0; line < kWidth; ++line)
      to[first * k + p * kWidth + line] = first + line < lines ? LoadElement(from[p * stride + first + line]) : 0.0f;
  }
}

template <int kWidth, typename T>
void Pack(bool k_contiguous, int64_t lines, int64_t k, const T* from, int64_t stride, float* to) {
  if (!k_contiguous) return PackNeighbours<kWidth>(lines, k, from, stride, to);
  for (int64_t first = 0; first < lines; first += kWidth)
    PackLines<kWidth>(lines - first, k, from + first * stride, stride, to + first * k);
}

// kRows x kVectors vectors of C, all of whose columns are there. kPanel: left is a panel; else rows lda apart.
template <int kRows, int kVectors, bool kPanel>
void FullTile(int64_t k, const float* left, int64_t lda, const float* right, bool add, float* c, int64_t ldc) {
  // What is written at the end is fetched while k runs.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    __builtin_prefetch(c + r * ldc, 1);
    __builtin_prefetch(c + r * ldc + kVectors * kLanes - 1, 1);
  }
  Vector sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
  }
  // An address can hold one of these and up to twice the distance of rows: fewer registers than one for each row.
  constexpr int kRowsOfBase = 3, kBases = (kRows + kRowsOfBase - 1) / kRowsOfBase;
  const float* bases[kBases];
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) bases[i] = left + (kPanel ? i * kRowsOfBase : i * kRowsOfBase * lda);
#pragma GCC unroll 1
  for (int64_t p = 0; p < k; ++p) {
    Vector columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = LoadVector(right + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const int above = r % kRowsOfBase;
      const Vector x = Broadcast(bases[r / kRowsOfBase] + (kPanel ? above : above * lda));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x * columns[v];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) bases[i] += kPanel ? kTileRows : 1;
    right += kTileColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + r * ldc + v * kLanes;
      StoreVector(out, add ? LoadVector(out) + sums[r][v] : sums[r][v]);
    }
  }
}

using FullTileFunction = void (*)(int64_t k, const float* left, int64_t lda, const float* right, bool add, float* c,
                                  int64_t ldc);

// FullTile for each number of rows and vectors.
template <bool kPanel>
struct Tiles {
  FullTileFunction of[kTileRows][kTileVectors];
  Tiles() { Fill<kTileRows>(); }

 private:
  template <int kRows>
  void Fill() {
    of[kRows - 1][0] = &FullTile<kRows, 1, kPanel>;
    of[kRows - 1][1] = &FullTile<kRows, 2, kPanel>;
    if constexpr (kRows > 1) Fill<kRows - 1>();
  }
};

template <bool kPanel>
void AnyTile(int64_t k, const float* left, int64_t lda, const float* right, int64_t rows, int64_t columns, bool add,
             float* c, int64_t ldc) {
  static const Tiles<kPanel> tiles;
  const int64_t vectors = (columns + kLanes - 1) / kLanes, width = vectors * kLanes;
  const FullTileFunction tile = tiles.of[rows - 1][vectors - 1];
  if (columns == width) return tile(k, left, lda, right, add, c, ldc);
  float whole[kTileRows * kTileColumns];
  tile(k, left, lda, right, /*add=*/false, whole, width);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns; ++i)
      c[r * ldc + i] = add ? c[r * ldc + i] + whole[r * width + i] : whole[r * width + i];
  }
}

void Tile(int64_t k, const float* left, const float* right, int64_t rows, int64_t columns, bool add, float* c,
          int64_t ldc) {
  AnyTile<true>(k, left, 0, right, rows, columns, add, c, ldc);
}

// sums += row r of A at p times a vector of B, for each row.
template <int kRows>
inline __attribute__((always_inline)) void AddRows(const float* left, int64_t lda, Vector line, Vector* sums) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r] += Broadcast(left + r * lda) * line;
}

// A square of columns of B, and of k from p on, times A.
template <int kRows, typename T>
inline __attribute__((always_inline)) void AddSquare(int64_t columns, const float* left, int64_t lda, const T* right,
                                                     int64_t ldb, Vector* sums) {
  Vector lines[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) lines[i] = i < columns ? LoadVector(right + i * ldb) : Vector{};
  TransposeSquare(lines);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) AddRows<kRows>(left + i, lda, lines[i], sums);
}

// The same for twice as many k of bfloat16: neighbours are transposed as one number of 32 bits, and parted then.
template <int kRows>
inline __attribute__((always_inline)) void AddSquareOfPairs(int64_t columns, const float* left, int64_t lda,
                                                            const Bf16* right, int64_t ldb, Vector* sums) {
  Vector lines[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    lines[i] =
        i < columns ? reinterpret_cast<Vector>(*reinterpret_cast<const UnalignedWords*>(right + i * ldb)) : Vector{};
  }
  TransposeSquare(lines);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const Words pair = reinterpret_cast<Words>(lines[i]);
    AddRows<kRows>(left + 2 * i, lda, reinterpret_cast<Vector>(pair << 16), sums);
    AddRows<kRows>(left + 2 * i + 1, lda, reinterpret_cast<Vector>(pair & 0xFFFF0000u), sums);
  }
}

// kRows rows of A times at most kLanes columns of B.
template <int kRows, typename T>
void FewRowsTile(int64_t columns, int64_t k, const float* left, int64_t lda, const T* right, int64_t ldb, bool add,
                 float* c, int64_t ldc) {
  Vector sums[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r] = Vector{};
  int64_t p = 0;
  if constexpr (sizeof(T) == 2) {
    for (; p + 2 * kLanes <= k; p += 2 * kLanes) AddSquareOfPairs<kRows>(columns, left + p, lda, right + p, ldb, sums);
  }
  for (; p + kLanes <= k; p += kLanes) AddSquare<kRows>(columns, left + p, lda, right + p, ldb, sums);
  for (; p < k; ++p) {
    Vector line = {};
    for (int i = 0; i < columns; ++i) line[i] = LoadElement(right[i * ldb + p]);
    AddRows<kRows>(left + p, lda, line, sums);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* out = c + r * ldc;
    if (columns == kLanes) {
      StoreVector(out, add ? LoadVector(out) + sums[r] : sums[r]);
    } else {
      for (int64_t i = 0; i < columns; ++i) out[i] = add ? out[i] + sums[r][i] : sums[r][i];
    }
  }
}

// FewRowsTile for each number of rows.
template <typename T>
struct FewRowsTiles {
  void (*of[kMostFewRows])(int64_t columns, int64_t k, const float* left, int64_t lda, const T* right, int64_t ldb,
                           bool add, float* c, int64_t ldc);
  FewRowsTiles() { Fill<kMostFewRows>(); }

 private:
  template <int kRows>
  void Fill() {
    of[kRows - 1] = &FewRowsTile<kRows, T>;
    if constexpr (kRows > 1) Fill<kRows - 1>();
  }
};

template <typename T>
void FewRows(int64_t rows, int64_t n, int64_t k, const float* left, int64_t lda, const T* right, int64_t ldb, bool add,
             float* c, int64_t ldc) {
  static const FewRowsTiles<T> tiles;
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t columns = n - j < kLanes ? n - j : kLanes;
    tiles.of[rows - 1](columns, k, left, lda, right + j * ldb, ldb, add, c + j, ldc);
  }
}

template <typename T>
constexpr TypedProducts<T> kTyped = {&Pack<kTileRows, T>, &Pack<kTileColumns, T>, &FewRows<T>};

}  // namespace

const CpuProducts& TRIREME_PRODUCTS() {
  static const CpuProducts products = {kTileRows,    kTileColumns, kMostFewRows,   kTyped<float>,
                                       kTyped<Bf16>, &Tile,        &AnyTile<false>};
  return products;
}

}  // namespace trireme
