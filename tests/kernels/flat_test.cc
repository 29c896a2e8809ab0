#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/ops.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

TEST(SquaredNorm, AddsEveryElementOnceInDouble) {
  TestTensors random(61);
  for (const int64_t n : {0, 1, 17, 65536, 65537, 300001}) {
    const at::Tensor x = random.Normal({n}, at::kFloat, 100);
    const double expected = n == 0 ? 0 : x.to(at::kDouble).pow(2).sum().item<double>();
    EXPECT_NEAR(SquaredNorm(x), expected, 1e-13 * expected) << n;
  }
  // Beyond what a float32 sum could hold.
  EXPECT_NEAR(SquaredNorm(at::full({100}, 1e30, at::TensorOptions().dtype(at::kFloat))), 1e62, 1e56);
}

TEST(SquaredNorm, SameBitsOnAnyNumberOfThreads) {
  const at::Tensor x = TestTensors(62).Normal({500003}, at::kFloat);
  SetCpuThreads(1);
  const double one = SquaredNorm(x);
  SetCpuThreads(2);
  EXPECT_EQ(SquaredNorm(x), one);
}

TEST(SumInOrder, AddsRankAfterRank) {
  TestTensors random(63);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor parts = random.Normal({5, 10007}, dtype);
    at::Tensor expected = parts[0].to(at::kFloat).clone();
    for (int64_t r = 1; r < 5; ++r) expected += parts[r].to(at::kFloat);
    at::Tensor out = at::empty({10007}, at::TensorOptions().dtype(at::kFloat));
    SumInOrder(parts, out);
    EXPECT_TRUE(out.equal(expected)) << DtypeName(dtype);
    at::Tensor narrow = at::empty({10007}, at::TensorOptions().dtype(dtype));
    SumInOrder(parts, narrow);
    EXPECT_TRUE(narrow.equal(expected.to(dtype))) << DtypeName(dtype);
  }
}

TEST(AddInto, TheAccumulatorMayBeWider) {
  TestTensors random(64);
  const int64_t n = 70001;
  for (const auto& [a_dtype, b_dtype] : {std::pair{at::kFloat, at::kFloat},
                                         {at::kFloat, at::kBFloat16},
                                         {at::kBFloat16, at::kBFloat16},
                                         {at::kDouble, at::kDouble}}) {
    at::Tensor a = random.Normal({n}, a_dtype);
    const at::Tensor b = random.Normal({n}, b_dtype), expected = a + b;
    AddInto(a, b);
    EXPECT_TRUE(a.equal(expected)) << DtypeName(a_dtype) << " += " << DtypeName(b_dtype);
  }
}

TEST(AddIntoDeathTest, SizesMustAgree) {
  at::Tensor a = at::empty({3}, at::TensorOptions().dtype(at::kFloat));
  EXPECT_DEATH(AddInto(a, at::empty({4}, a.options())), "sizes 3 and 4");
}

TEST(CopyConverted, RoundsToNearestEvenAsLibtorchDoes) {
  // Every exponent, with mantissas on, just below and just above the halfway points.
  std::vector<float> values = {0.0f, -0.0f, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-45f, 1.17549435e-38f};
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, 0x18000u, 0x17FFFu}) {
      values.push_back(BitsFloat(exponent << 23 | low));
      values.push_back(BitsFloat(0x80000000u | exponent << 23 | 0x7F0000u | low));
    }
  }
  const at::Tensor from = TensorOf(values);
  at::Tensor narrow = at::empty(from.sizes(), from.options().dtype(at::kBFloat16));
  CopyConverted(from, narrow);
  EXPECT_TRUE(narrow.equal(from.to(at::kBFloat16)));
  at::Tensor wide = at::empty(from.sizes(), from.options());
  CopyConverted(narrow, wide);
  EXPECT_TRUE(wide.equal(narrow.to(at::kFloat)));
}

TEST(CopyConverted, NanStaysNan) {
  std::vector<float> values;
  for (const uint32_t bits : {0x7FC00000u, 0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    for (int i = 0; i < 20; ++i) values.push_back(BitsFloat(bits));
  }
  const at::Tensor from = TensorOf(values);
  at::Tensor narrow = at::empty(from.sizes(), from.options().dtype(at::kBFloat16));
  CopyConverted(from, narrow);
  EXPECT_TRUE(narrow.isnan().all().item<bool>());
}

TEST(CopyConverted, SameDtypeCopies) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const at::Tensor from = TestTensors(65).Normal({70001}, dtype);
    at::Tensor to = at::empty(from.sizes(), from.options());
    CopyConverted(from, to);
    EXPECT_TRUE(to.equal(from)) << DtypeName(dtype);
  }
}

}  // namespace
}  // namespace trireme
