// Matrix products of every odd size, stride and dtype against at::mm in float64.
#include <ATen/ops/mm.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/base/ops.h"
#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

struct Size {
  int64_t m, n, k;
};
// Around the tile of 48, tall, wide, inner size one.
constexpr Size kSizes[] = {{1, 1, 1}, {1, 50, 7}, {3, 1, 129}, {47, 49, 48}, {97, 5, 31}, {5, 193, 64}, {130, 131, 1}};

class Matmuls : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor Random(at::IntArrayRef sizes) { return random_.Normal(sizes, GetParam()); }
  static at::Tensor Product(const at::Tensor& a, const at::Tensor& b) {
    return at::mm(a.to(at::kDouble), b.to(at::kDouble));
  }
  TestTensors random_{91};
};

TEST_P(Matmuls, LikeLibtorch) {
  for (const int threads : {1, 2, 3}) {
    SetCpuThreads(threads);
    for (const auto& [m, n, k] : kSizes) {
      SCOPED_TRACE(absl::StrCat(m, " x ", n, " x ", k, ", ", threads, " threads"));
      const at::Tensor x = Random({m, k}), w = Random({n, k}), residual = Random({m, n}), dy = Random({m, n});
      EXPECT_LT(RelativeError(MatmulTransposed(x, w), Product(x, w.t())), Tolerance(GetParam()));
      EXPECT_LT(RelativeError(MatmulTransposed(x, w, residual), Product(x, w.t()) + residual.to(at::kDouble)),
                Tolerance(GetParam()));
      EXPECT_LT(RelativeError(Matmul(dy, w), Product(dy, w)), Tolerance(GetParam()));
      at::Tensor accumulator = random_.Normal({n, k}, ArithmeticType(GetParam()));
      const at::Tensor expected = accumulator.to(at::kDouble) + Product(dy.t(), x);
      AddOuterProduct(dy, x, accumulator);
      EXPECT_LT(RelativeError(accumulator, expected), Tolerance(at::kFloat));
    }
  }
  SetCpuThreads(2);
}

TEST_P(Matmuls, ResidualIsNotChanged) {
  const at::Tensor x = Random({5, 4}), w = Random({6, 4}), residual = Random({5, 6}), before = residual.clone();
  MatmulTransposed(x, w, residual);
  EXPECT_TRUE(residual.equal(before));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Matmuls, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

template <typename T>
void CheckStridedGemm() {
  const at::ScalarType dtype = c10::CppTypeToScalarType<T>::value;
  TestTensors random(92);
  for (const auto& [m, n, k] : kSizes) {
    for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        const auto stored = [&](int64_t rows, int64_t columns, Transpose t) {
          const at::Tensor wide = t == Transpose::kNo ? random.Normal({rows, columns + 3}, dtype)
                                                      : random.Normal({columns, rows + 3}, dtype);
          return wide.narrow(1, 2, wide.size(1) - 3);
        };
        const at::Tensor a = stored(m, k, ta), b = stored(k, n, tb);
        at::Tensor whole = random.Normal({m, n + 5}, dtype);
        at::Tensor c = whole.narrow(1, 1, n);
        const at::Tensor before = whole.clone();
        const at::Tensor product = at::mm((ta == Transpose::kNo ? a : a.t()).to(at::kDouble),
                                          (tb == Transpose::kNo ? b : b.t()).to(at::kDouble));
        const at::Tensor expected = product + c.to(at::kDouble);
        T* c_data = static_cast<T*>(c.data_ptr());
        ParallelGemm(ta, tb, m, n, k, static_cast<T*>(a.data_ptr()), a.stride(0), static_cast<T*>(b.data_ptr()),
                     b.stride(0), /*add=*/true, c_data, c.stride(0));
        EXPECT_LT(RelativeError(c, expected), Tolerance(dtype)) << m << " x " << n << " x " << k;
        EXPECT_TRUE(whole.narrow(1, 0, 1).equal(before.narrow(1, 0, 1))) << "left of C";
        EXPECT_TRUE(whole.narrow(1, n + 1, 4).equal(before.narrow(1, n + 1, 4))) << "right of C";

        Gemm(ta, tb, m, n, k, static_cast<T*>(a.data_ptr()), a.stride(0), static_cast<T*>(b.data_ptr()), b.stride(0),
             /*add=*/false, c_data, c.stride(0));
        EXPECT_LT(RelativeError(c, product), Tolerance(dtype)) << m << " x " << n << " x " << k;
      }
    }
  }
}

TEST(GemmTest, StridedAndTransposed) {
  CheckStridedGemm<float>();
  CheckStridedGemm<double>();
}

TEST(GemmTest, WithoutAddItIgnoresWhatWasThere) {
  at::Tensor c = TensorOf<float>({std::numeric_limits<float>::quiet_NaN()});
  const at::Tensor a = TensorOf<float>({3}), b = TensorOf<float>({4});
  Gemm(Transpose::kNo, Transpose::kNo, 1, 1, 1, a.const_data_ptr<float>(), 1, b.const_data_ptr<float>(), 1,
       /*add=*/false, c.mutable_data_ptr<float>(), 1);
  EXPECT_EQ(c.item<float>(), 12);
}

TEST(GramTest, TheSameBitsAsTheProduct) {
  TestTensors random(94);
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 3}, {96, 50}, {97, 400}, {300, 31}, {250, 700}}) {
    const at::Tensor x = random.Normal({rows, columns}, at::kFloat);
    EXPECT_TRUE(Gram(x).equal(MatmulTransposed(x, x))) << rows << " x " << columns;
  }
}

TEST(MatmulDeathTest, InnerSizesMustAgree) {
  TestTensors random(93);
  const at::Tensor x = random.Normal({2, 3}, at::kFloat), w = random.Normal({2, 4}, at::kFloat);
  EXPECT_DEATH(MatmulTransposed(x, w), "inner sizes 3 and 4 differ");
}

}  // namespace
}  // namespace trireme
