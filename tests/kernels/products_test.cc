// Own matrix products of every instruction set: right for every size up to 70, equal in their bits whatever else is in
// the product, and true to infinities and the smallest numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm_backend.h"

namespace trireme {
namespace {

struct InstructionSet {
  const char* name;
  const CpuProducts& (*products)();
  bool (*there)();
};

const InstructionSet kInstructionSets[] = {
    {"portable", &PortableProducts, [] { return true; }},
#if defined(__x86_64__)
    {"avx2", &Avx2Products, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {"avx512", &Avx512Products,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
};

// A [rows, columns] matrix of a product: stored plain or transposed, with a stride that leaves a gap.
template <typename T>
struct Matrix {
  Transpose transpose;
  int64_t ld;
  std::vector<T> values;

  Matrix(int64_t rows, int64_t columns, Transpose transpose_as, int64_t gap)
      : transpose(transpose_as),
        ld((transpose_as == Transpose::kNo ? columns : rows) + gap),
        values(static_cast<size_t>(ld * (transpose_as == Transpose::kNo ? rows : columns))) {}
  const T* At(int64_t row, int64_t column) const {
    return values.data() + (transpose == Transpose::kNo ? row * ld + column : column * ld + row);
  }
  T& Element(int64_t row, int64_t column) {
    return values[static_cast<size_t>(transpose == Transpose::kNo ? row * ld + column : column * ld + row)];
  }
};

class ProductsTest : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (!GetParam().there()) {
      std::printf("skipped: this processor lacks %s\n", GetParam().name);
      GTEST_SKIP() << "this processor lacks " << GetParam().name;
    }
    products_ = &GetParam().products();
  }

  int64_t Between(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(generator_);
  }
  Transpose AnyTranspose() { return Between(0, 1) == 0 ? Transpose::kNo : Transpose::kYes; }

  template <typename T>
  Matrix<T> Random(int64_t rows, int64_t columns, Transpose transpose) {
    Matrix<T> matrix(rows, columns, transpose, Between(0, 3));
    std::normal_distribution<float> normal;
    for (T& value : matrix.values) {
      if constexpr (std::is_same_v<T, Bf16>) {
        value = RoundToBf16(normal(generator_));
      } else {
        value = normal(generator_);
      }
    }
    return matrix;
  }

  template <typename A, typename B>
  void Multiply(int64_t m, int64_t n, int64_t k, const Matrix<A>& a, const Matrix<B>& b, bool add, float* c,
                int64_t ldc) {
    OwnGemm(*products_, a.transpose, b.transpose, m, n, k, a.values.data(), a.ld, b.values.data(), b.ld, add, c, ldc);
  }

  const CpuProducts* products_ = nullptr;
  std::mt19937_64 generator_{18};
};

INSTANTIATE_TEST_SUITE_P(All, ProductsTest, testing::ValuesIn(kInstructionSets),
                         [](const auto& info) { return info.param.name; });

// Sums over the first k of A's and B's elements in float64, and of their magnitudes: [k][m][n], for all k at once.
struct Prefixes {
  static constexpr int64_t kMost = 70;
  std::vector<double> sums, magnitudes;
  Prefixes(const Matrix<float>& a, const Matrix<float>& b)
      : sums((kMost + 1) * kMost * kMost), magnitudes(sums.size()) {
    for (int64_t k = 0; k < kMost; ++k) {
      for (int64_t i = 0; i < kMost; ++i) {
        for (int64_t j = 0; j < kMost; ++j) {
          const double term = static_cast<double>(*a.At(i, k)) * static_cast<double>(*b.At(k, j));
          sums[Index(k + 1, i, j)] = sums[Index(k, i, j)] + term;
          magnitudes[Index(k + 1, i, j)] = magnitudes[Index(k, i, j)] + std::abs(term);
        }
      }
    }
  }
  static size_t Index(int64_t k, int64_t i, int64_t j) { return static_cast<size_t>((k * kMost + i) * kMost + j); }
};

TEST_P(ProductsTest, EverySizeTo70LikeFloat64) {
  constexpr int64_t kMost = Prefixes::kMost, kStride = kMost + 3;
  struct Way {
    Matrix<float> a, b;
    Prefixes expected;
  };
  std::vector<Way> ways;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      const Matrix<float> a = Random<float>(kMost, kMost, ta), b = Random<float>(kMost, kMost, tb);
      ways.push_back({a, b, Prefixes(a, b)});
    }
  }
  constexpr float kUntouched = 12345;
  std::vector<float> c(kMost * kStride);
  int64_t wrong = 0;
  for (int64_t m = 1; m <= kMost; ++m) {
    for (int64_t n = 1; n <= kMost; ++n) {
      for (int64_t k = 1; k <= kMost; ++k) {
        const Way& way = ways[static_cast<size_t>(m + 3 * n + 5 * k) % ways.size()];
        const bool add = (m + n + k) % 3 == 0;
        std::fill(c.begin(), c.begin() + m * kStride, kUntouched);
        for (int64_t i = 0; i < m && add; ++i) std::fill_n(c.begin() + i * kStride, n, 1.0f);
        Multiply(m, n, k, way.a, way.b, add, c.data(), kStride);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const double want = way.expected.sums[Prefixes::Index(k, i, j)] + (add ? 1 : 0);
            // Each of the k roundings loses at most half a unit in the last place of a partial sum.
            const double bound =
                static_cast<double>(k + 1) * 0x1p-24 * (way.expected.magnitudes[Prefixes::Index(k, i, j)] + 1);
            if (!(std::abs(static_cast<double>(c[i * kStride + j]) - want) <= bound)) ++wrong;
          }
          for (int64_t j = n; j < kStride; ++j) wrong += c[i * kStride + j] == kUntouched ? 0 : 1;
        }
        ASSERT_EQ(wrong, 0) << m << " x " << n << " x " << k;
      }
    }
  }
}

// A row's bits are the same alone, among others, in any chunk of rows and columns, and from prepared operands.
TEST_P(ProductsTest, RowsHaveTheSameBitsInAnyBatch) {
  for (int round = 0; round < 1500; ++round) {
    const int64_t m = Between(1, round % 10 == 0 ? 300 : 60), n = Between(1, 90);
    const int64_t k = round % 5 == 0 ? Between(1, 1300) : Between(1, 200);
    const Matrix<float> a = Random<float>(m, k, AnyTranspose()), b = Random<float>(k, n, AnyTranspose());
    std::vector<float> whole(static_cast<size_t>(m * n));
    Multiply(m, n, k, a, b, /*add=*/false, whole.data(), n);
    const int64_t row = Between(0, m - 1), rows = Between(1, m - row), column = Between(0, n - 1),
                  columns = Between(1, n - column);
    std::vector<float> part(static_cast<size_t>(rows * columns)), prepared(part.size());
    const float *a_part = a.At(row, 0), *b_part = b.At(0, column);
    OwnGemm(*products_, a.transpose, b.transpose, rows, columns, k, a_part, a.ld, b_part, b.ld, /*add=*/false,
            part.data(), columns);
    PackedRight packed;
    packed.Resize(*products_, k, columns);
    PackRight(*products_, b.transpose, b_part, b.ld, 0, columns, &packed);
    OwnGemm(*products_, a.transpose, rows, columns, k, a_part, a.ld, packed, /*first=*/0, /*add=*/false,
            prepared.data(), columns);
    for (int64_t i = 0; i < rows; ++i) {
      const size_t bytes = static_cast<size_t>(columns) * sizeof(float);
      ASSERT_EQ(std::memcmp(&part[i * columns], &whole[(row + i) * n + column], bytes), 0)
          << m << " x " << n << " x " << k << ", row " << row + i;
      ASSERT_EQ(std::memcmp(&prepared[i * columns], &part[i * columns], bytes), 0)
          << m << " x " << n << " x " << k << ", row " << row + i << ", prepared";
    }
  }
}

TEST_P(ProductsTest, LikeThePortableOnes) {
  for (int round = 0; round < 300; ++round) {
    const int64_t m = Between(1, 200), n = Between(1, 200), k = Between(1, 900);
    const Matrix<float> a = Random<float>(m, k, AnyTranspose()), b = Random<float>(k, n, AnyTranspose());
    std::vector<float> got(static_cast<size_t>(m * n)), want(got.size());
    Multiply(m, n, k, a, b, /*add=*/false, got.data(), n);
    OwnGemm(PortableProducts(), a.transpose, b.transpose, m, n, k, a.values.data(), a.ld, b.values.data(), b.ld,
            /*add=*/false, want.data(), n);
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 1e-5 * std::sqrt(static_cast<double>(k))) << m << " x " << n << " x " << k;
  }
}

// bfloat16 operands are exact in float32: the same bits as from widened ones.
TEST_P(ProductsTest, Bfloat16OperandsAsTheyLie) {
  const auto widened = [](const Matrix<Bf16>& narrow) {
    Matrix<float> wide(0, 0, narrow.transpose, narrow.ld);
    for (const Bf16 value : narrow.values) wide.values.push_back(ToFloat(value));
    return wide;
  };
  for (int round = 0; round < 300; ++round) {
    const int64_t m = Between(1, 120), n = Between(1, 120), k = Between(1, 500);
    const Matrix<Bf16> a = Random<Bf16>(m, k, AnyTranspose()), b = Random<Bf16>(k, n, AnyTranspose());
    const Matrix<float> wide_a = widened(a), wide_b = widened(b);
    std::vector<float> want(static_cast<size_t>(m * n)), got(want.size());
    Multiply(m, n, k, wide_a, wide_b, /*add=*/false, want.data(), n);
    Multiply(m, n, k, a, b, /*add=*/false, got.data(), n);
    ASSERT_EQ(got, want) << m << " x " << n << " x " << k;
    Multiply(m, n, k, a, wide_b, /*add=*/false, got.data(), n);
    ASSERT_EQ(got, want) << m << " x " << n << " x " << k;
    Multiply(m, n, k, wide_a, b, /*add=*/false, got.data(), n);
    ASSERT_EQ(got, want) << m << " x " << n << " x " << k;
  }
}

TEST_P(ProductsTest, InfinitiesStayInTheirRowsAndColumns) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      constexpr int64_t m = 29, n = 67, k = 41;
      Matrix<float> a = Random<float>(m, k, ta), b = Random<float>(k, n, tb);
      a.Element(13, 40) = infinity;
      b.Element(3, 64) = std::numeric_limits<float>::quiet_NaN();
      std::vector<float> c(m * n);
      Multiply(m, n, k, a, b, /*add=*/false, c.data(), n);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const float value = c[static_cast<size_t>(i * n + j)];
          if (j == 64) {
            EXPECT_TRUE(std::isnan(value)) << i;
          } else if (i == 13) {
            EXPECT_EQ(value, std::copysign(infinity, *b.At(40, j))) << j;
          } else {
            EXPECT_TRUE(std::isfinite(value)) << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST_P(ProductsTest, SmallestNumbersAreNotZero) {
  Matrix<float> a(2, 3, Transpose::kNo, 0), b(3, 2, Transpose::kYes, 0);
  a.Element(0, 1) = 3 * std::numeric_limits<float>::denorm_min();
  a.Element(1, 2) = 0x1p-100f;
  b.Element(1, 0) = 5;
  b.Element(2, 1) = 0x1p-40f;
  std::vector<float> c(4);
  Multiply(2, 2, 3, a, b, /*add=*/false, c.data(), 2);
  EXPECT_EQ(c[0], 15 * std::numeric_limits<float>::denorm_min());
  EXPECT_EQ(c[3], 0x1p-140f);
}

TEST_P(ProductsTest, WithoutInnerElementsNothingIsAdded) {
  const Matrix<float> nothing(3, 0, Transpose::kNo, 1);
  std::vector<float> c(9, 7.0f);
  Multiply(3, 3, 0, nothing, nothing, /*add=*/true, c.data(), 3);
  EXPECT_EQ(c, std::vector<float>(9, 7.0f));
  Multiply(3, 3, 0, nothing, nothing, /*add=*/false, c.data(), 3);
  EXPECT_EQ(c, std::vector<float>(9, 0.0f));
}

TEST(ParallelProducts, SameBitsOnAnyNumberOfThreads) {
  std::mt19937_64 generator(19);
  const auto between = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(generator);
  };
  for (int round = 0; round < 60; ++round) {
    const int64_t m = between(1, 700), n = between(1, 900), k = between(1, 500);
    std::vector<float> a(static_cast<size_t>(m * k)), b(static_cast<size_t>(n * k));
    std::normal_distribution<float> normal;
    for (float& value : a) value = normal(generator);
    for (float& value : b) value = normal(generator);
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 4}) {
      SetCpuThreads(threads);
      std::vector<float> c(static_cast<size_t>(m * n));
      ParallelGemm(Transpose::kNo, Transpose::kYes, m, n, k, a.data(), k, b.data(), k, /*add=*/false, c.data(), n);
      if (threads == 1) first = c;
      ASSERT_EQ(std::memcmp(c.data(), first.data(), c.size() * sizeof(float)), 0)
          << m << " x " << n << " x " << k << ", " << threads << " threads";
    }
  }
  SetCpuThreads(2);
}

// Pieces cover C, and large products are cut for all threads.
TEST(ParallelProducts, PiecesAreWholeTilesForAllThreads) {
  for (const int64_t threads : {2, 3, 16}) {
    for (const auto& [m, n] : {std::pair<int64_t, int64_t>{2048, 256}, {256, 2048}, {2048, 1536}, {1, 4096}}) {
      const ProductPieces pieces = CutProduct(Products(), m, n, 256, threads);
      EXPECT_TRUE(pieces.rows >= m || pieces.rows % Products().tile_rows == 0);
      EXPECT_TRUE(pieces.columns >= n || pieces.columns % Products().tile_columns == 0);
      const int64_t tasks = ((m + pieces.rows - 1) / pieces.rows) * ((n + pieces.columns - 1) / pieces.columns);
      EXPECT_GE(tasks, threads) << m << " x " << n;
      EXPECT_LE(tasks, 8 * threads) << m << " x " << n;
    }
  }
}

}  // namespace
}  // namespace trireme
