// The blocked attention against the plain one, and the plain one against softmax written out.
#include "kernels/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/thread_pool.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

struct Shape {
  std::vector<int32_t> q_lengths, k_lengths;
  int64_t heads, kv_heads, head_dim, window;
  bool causal = true;
};

std::string Describe(const Shape& s) {
  std::string text = absl::StrCat(s.heads, "/", s.kv_heads, " heads of ", s.head_dim, ", window ", s.window, ", q");
  for (const int32_t length : s.q_lengths) absl::StrAppend(&text, " ", length);
  absl::StrAppend(&text, ", k");
  for (const int32_t length : s.k_lengths) absl::StrAppend(&text, " ", length);
  return text;
}

// Whole sequences of every awkward length, windows shorter and longer than the blocks (64 queries, 512 keys), more keys
// than queries.
const Shape kShapes[] = {
    {{1}, {1}, 1, 1, 16, 0},
    {{7, 1, 64, 65, 3}, {7, 1, 64, 65, 3}, 4, 2, 16, 0},
    {{129, 31}, {129, 31}, 3, 1, 32, 0},
    {{600, 45}, {600, 45}, 2, 1, 64, 0},
    {{1100}, {1100}, 1, 1, 24, 0},
    {{1100}, {1100}, 2, 2, 16, 100},
    {{1100}, {1100}, 1, 1, 16, 700},
    {{90, 17}, {90, 17}, 6, 2, 128, 5},
    {{33}, {33}, 2, 1, 80, 1},
    {{5, 70, 1}, {9, 600, 300}, 4, 4, 16, 0},
    {{3, 66}, {530, 140}, 2, 1, 32, 37},
    {{20, 70}, {11, 530}, 2, 2, 16, 0, /*causal=*/false},
};

class AttentionTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  static at::Tensor CuSeqlens(const std::vector<int32_t>& lengths, int padding) {
    std::vector<int32_t> ends = {0};
    for (const int32_t length : lengths) ends.push_back(ends.back() + length);
    for (int i = 0; i < padding; ++i) ends.push_back(ends.back());
    return TensorOf(ends);
  }
  static int64_t Sum(const std::vector<int32_t>& lengths) {
    int64_t sum = 0;
    for (const int32_t length : lengths) sum += length;
    return sum;
  }

  // q, k and v are views of wider rows, as in a packed projection.
  AttentionArguments Arguments(const Shape& s) {
    AttentionArguments a;
    const int64_t tokens_q = Sum(s.q_lengths), tokens_k = Sum(s.k_lengths);
    a.q = random_.Normal({tokens_q, s.heads + 3, s.head_dim}, GetParam()).narrow(1, 1, s.heads);
    const at::Tensor kv = random_.Normal({tokens_k, 2 * s.kv_heads, s.head_dim}, GetParam());
    a.k = kv.narrow(1, 0, s.kv_heads);
    a.v = kv.narrow(1, s.kv_heads, s.kv_heads);
    a.cu_seqlens_q = CuSeqlens(s.q_lengths, 2);  // Capacity beyond the segments is padded with the number of tokens.
    a.cu_seqlens_k = CuSeqlens(s.k_lengths, 2);
    a.max_q = *std::max_element(s.q_lengths.begin(), s.q_lengths.end());
    a.max_k = *std::max_element(s.k_lengths.begin(), s.k_lengths.end());
    a.window = s.window;
    a.causal = s.causal;
    a.scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
    return a;
  }

  static AttentionArguments Wide(AttentionArguments a) {
    a.q = a.q.to(at::kDouble);
    a.k = a.k.to(at::kDouble);
    a.v = a.v.to(at::kDouble);
    return a;
  }

  // Views of packed gradients, filled with NaN: what is not written shows.
  static AttentionGradients Gradients(const AttentionArguments& a) {
    const double nan = std::nan("");
    const int64_t kv_heads = a.k.size(1), d = a.q.size(2);
    const at::Tensor q = at::full({a.q.size(0), a.q.size(1) + 1, d}, nan, a.q.options());
    const at::Tensor kv = at::full({a.k.size(0), 2 * kv_heads, d}, nan, a.k.options());
    return {q.narrow(1, 1, a.q.size(1)), kv.narrow(1, 0, kv_heads), kv.narrow(1, kv_heads, kv_heads)};
  }

  // Relative to the largest gradient, or to the gradient that comes in: a query with one key has none to pass on.
  static double GradientError(const at::Tensor& got, const at::Tensor& want) {
    return RelativeError(got, want) * want.abs().max().item<double>() / std::max(want.abs().max().item<double>(), 1.0);
  }

  double tolerance() const { return GetParam() == at::kFloat ? 1e-5 : Tolerance(GetParam()); }
  TestTensors random_{41};
};

TEST_P(AttentionTest, CpuLikeMathInFloat64) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    const AttentionArguments a = Arguments(shape), wide = Wide(a);
    ASSERT_TRUE(CpuAttention().supports(a).ok());
    const AttentionOutput output = CpuAttention().forward(a), expected = MathAttention().forward(wide);
    EXPECT_EQ(output.out.scalar_type(), GetParam());
    EXPECT_LT(RelativeError(output.out, expected.out), tolerance());
    EXPECT_LT((output.lse.to(at::kDouble) - expected.lse).abs().max().item<double>(), 1e-5);

    const at::Tensor d_out = random_.Normal(output.out.sizes(), GetParam());
    AttentionGradients gradients = Gradients(a), expected_gradients = Gradients(wide);
    CpuAttention().backward(a, output, d_out, gradients);
    MathAttention().backward(wide, expected, d_out.to(at::kDouble), expected_gradients);
    // A bfloat16 output enters the backward pass rounded.
    const double slack = GetParam() == at::kBFloat16 ? 3 : 1;
    EXPECT_LT(GradientError(gradients.dq, expected_gradients.dq), slack * tolerance());
    EXPECT_LT(GradientError(gradients.dk, expected_gradients.dk), slack * tolerance());
    EXPECT_LT(GradientError(gradients.dv, expected_gradients.dv), slack * tolerance());
  }
}

TEST_P(AttentionTest, SameBitsOnAnyNumberOfThreads) {
  const Shape shape = {{200, 45, 300}, {200, 45, 300}, 4, 2, 16, 0};
  const AttentionArguments a = Arguments(shape);
  const at::Tensor d_out = random_.Normal(a.q.sizes(), GetParam());
  std::vector<at::Tensor> first;
  for (const int threads : {1, 2}) {
    SetCpuThreads(threads);
    const AttentionOutput output = CpuAttention().forward(a);
    AttentionGradients gradients = Gradients(a);
    CpuAttention().backward(a, output, d_out, gradients);
    const std::vector<at::Tensor> all = {output.out, output.lse, gradients.dq, gradients.dk, gradients.dv};
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(all[i].equal(first[i])) << threads << " threads, tensor " << i;
  }
  SetCpuThreads(2);
}

// A segment is a world of its own: the others' contents do not reach it.
TEST_P(AttentionTest, SegmentsDoNotSeeEachOther) {
  const Shape shape = {{70, 81}, {70, 81}, 2, 1, 16, 0};
  const AttentionArguments a = Arguments(shape);
  const at::Tensor before = CpuAttention().forward(a).out.narrow(0, 0, 70).clone();
  for (const at::Tensor& x : {a.q, a.k, a.v}) x.narrow(0, 70, 81).mul_(-3);
  EXPECT_TRUE(CpuAttention().forward(a).out.narrow(0, 0, 70).equal(before));
}

// Queries that see no key: nothing comes out and no gradient flows.
TEST_P(AttentionTest, MoreQueriesThanKeys) {
  const Shape shape = {{9, 150}, {4, 20}, 2, 1, 16, 0};
  const AttentionArguments a = Arguments(shape);
  const at::Tensor d_out = random_.Normal(a.q.sizes(), GetParam());
  const AttentionArguments wide = Wide(a);
  const AttentionOutput output = CpuAttention().forward(a), expected = MathAttention().forward(wide);
  EXPECT_EQ(output.out.narrow(0, 0, 5).abs().sum().item<double>(), 0);
  EXPECT_EQ(output.out.narrow(0, 9, 130).abs().sum().item<double>(), 0);
  EXPECT_LT(RelativeError(output.out, expected.out), tolerance());
  AttentionGradients gradients = Gradients(a), expected_gradients = Gradients(wide);
  CpuAttention().backward(a, output, d_out, gradients);
  MathAttention().backward(wide, expected, d_out.to(at::kDouble), expected_gradients);
  EXPECT_EQ(gradients.dq.narrow(0, 9, 130).abs().sum().item<double>(), 0);
  EXPECT_LT(GradientError(gradients.dq, expected_gradients.dq), 3 * tolerance());
  EXPECT_LT(GradientError(gradients.dk, expected_gradients.dk), 3 * tolerance());
}

TEST_P(AttentionTest, KeysOfAnEmptyQuerySegmentGetZeroGradient) {
  const Shape shape = {{0, 6}, {5, 6}, 1, 1, 16, 0};
  const AttentionArguments a = Arguments(shape);
  const AttentionOutput output = CpuAttention().forward(a);
  for (const AttentionBackend* backend : {&CpuAttention(), &MathAttention()}) {
    AttentionGradients gradients = Gradients(a);
    backend->backward(a, output, random_.Normal(a.q.sizes(), GetParam()), gradients);
    EXPECT_EQ(gradients.dk.narrow(0, 0, 5).abs().sum().item<double>(), 0) << backend->name;
    EXPECT_EQ(gradients.dv.narrow(0, 0, 5).abs().sum().item<double>(), 0) << backend->name;
  }
}

// One sequence, one head at a time, as a textbook has it.
TEST_P(AttentionTest, MathLikeSoftmax) {
  const Shape shape = {{40}, {40}, 4, 2, 16, 0};
  const AttentionArguments a = Arguments(shape), wide = Wide(a);
  const AttentionOutput output = MathAttention().forward(a);
  const at::Tensor hidden = at::full({40, 40}, -INFINITY, wide.q.options()).triu(1);
  for (int64_t head = 0; head < 4; ++head) {
    const auto of = [&](const at::Tensor& x, int64_t h) { return x.select(1, h); };
    const at::Tensor scores = at::matmul(of(wide.q, head), of(wide.k, head / 2).t()) * a.scale + hidden;
    EXPECT_LT(RelativeError(of(output.out, head), at::matmul(at::softmax(scores, 1), of(wide.v, head / 2))),
              tolerance());
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AttentionTest, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

TEST(ChooseAttention, AutoTakesTheFirstThatCan) {
  AttentionArguments example;
  example.q = example.k = example.v = at::empty({1, 2, 16}, at::TensorOptions().dtype(at::kFloat));
  EXPECT_EQ(ChooseAttention(BuiltInAttentionBackends(), "auto", example)->name, "cpu");
  example.softcap = 30;
  EXPECT_EQ(ChooseAttention(BuiltInAttentionBackends(), "auto", example)->name, "math");
  const absl::Status refused = ChooseAttention(BuiltInAttentionBackends(), "cpu", example).status();
  EXPECT_EQ(ExitCodeOf(refused), ExitCode::kConfig);
  EXPECT_NE(refused.message().find("soft cap"), std::string::npos) << refused;
}

TEST(ChooseAttention, UnknownNamesListTheKnown) {
  const absl::Status status = ChooseAttention(BuiltInAttentionBackends(), "fastest", AttentionArguments()).status();
  EXPECT_NE(status.message().find("auto, cpu, flash, cudnn, math"), std::string::npos) << status;
}

TEST(ChooseAttention, CpuRefusesAWindowWithoutCausalMask) {
  AttentionArguments example;
  example.q = example.k = example.v = at::empty({1, 2, 16}, at::TensorOptions().dtype(at::kFloat));
  example.causal = false;
  example.window = 4;
  EXPECT_FALSE(CpuAttention().supports(example).ok());
}

}  // namespace
}  // namespace trireme
