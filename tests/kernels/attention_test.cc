// The blocked attention against the plain one, and the plain one against softmax written out.
#include "kernels/attention/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/thread_pool.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

struct Shape {
  std::vector<int32_t> q_lengths, k_lengths;
  int64_t heads, kv_heads, head_dim, window;
  bool causal = true;
  std::vector<int32_t> diagonal = {};  // empty: bottom-right
  double softcap = 0;
};

std::string Describe(const Shape& s) {
  std::string text = absl::StrCat(s.heads, "/", s.kv_heads, " heads of ", s.head_dim, ", window ", s.window, ", q");
  for (const int32_t length : s.q_lengths) absl::StrAppend(&text, " ", length);
  absl::StrAppend(&text, ", k");
  for (const int32_t length : s.k_lengths) absl::StrAppend(&text, " ", length);
  if (!s.diagonal.empty()) absl::StrAppend(&text, ", diagonal");
  for (const int32_t diagonal : s.diagonal) absl::StrAppend(&text, " ", diagonal);
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
    {{600, 45}, {600, 45}, 4, 2, 16, 0, true, {}, /*softcap=*/1.5},
    {{3, 66}, {530, 140}, 2, 1, 32, 37, true, {}, /*softcap=*/50},
};

// Within the keys; the first queries see nothing (below zero), all see all (beyond the keys), and with a window the
// last queries see nothing, or none does.
const Shape kDiagonalShapes[] = {
    {{7, 70, 5, 9}, {20, 600, 5, 3}, 4, 2, 16, 0, true, {3, 530, -2, 8}},
    {{130, 66}, {40, 530}, 2, 1, 32, 0, true, {-70, -1}},
    {{70, 90, 5}, {80, 700, 4}, 3, 1, 16, 33, true, {60, 640, 4}},
    {{140, 3, 12}, {90, 10, 6}, 2, 2, 24, 20, true, {-30, 200, -40}},
    {{80, 6}, {1200, 6}, 2, 1, 16, 600, true, {1150, 0}},
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
    if (!s.diagonal.empty()) {
      std::vector<int32_t> diagonal = s.diagonal;
      diagonal.resize(a.cu_seqlens_q.size(0) - 1);
      a.diagonal = TensorOf(diagonal);
    }
    a.scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
    a.softcap = s.softcap;
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

  // CPU's forward and backward against math's in float64. lse is compared where it is finite; -inf has to be there too.
  void ExpectCpuLikeMath(const AttentionArguments& a) {
    const AttentionArguments wide = Wide(a);
    ASSERT_TRUE(CpuAttention().supports(a).ok());
    const AttentionOutput output = CpuAttention().forward(a), expected = MathAttention().forward(wide);
    EXPECT_EQ(output.out.scalar_type(), GetParam());
    EXPECT_LT(RelativeError(output.out, expected.out), tolerance());
    const at::Tensor lse = output.lse.to(at::kDouble);
    EXPECT_TRUE(lse.isneginf().equal(expected.lse.isneginf()));
    EXPECT_LT((lse.clamp_min(-1e30) - expected.lse.clamp_min(-1e30)).abs().max().item<double>(), 1e-5);

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

  double tolerance() const { return GetParam() == at::kFloat ? 1e-5 : Tolerance(GetParam()); }
  TestTensors random_{41};
};

TEST_P(AttentionTest, CpuLikeMathInFloat64) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    ExpectCpuLikeMath(Arguments(shape));
  }
}

TEST_P(AttentionTest, CpuLikeMathOnAnyDiagonal) {
  for (const Shape& shape : kDiagonalShapes) {
    SCOPED_TRACE(Describe(shape));
    ExpectCpuLikeMath(Arguments(shape));
  }
}

// The keys in two parts, each with the whole softmax's output: their gradients add up to the whole's.
TEST_P(AttentionTest, PartsOfTheKeysGiveTheirShareOfTheGradients) {
  const AttentionArguments a = Arguments({{70}, {90}, 2, 1, 16, 0});
  const AttentionOutput whole = CpuAttention().forward(a);
  const at::Tensor d_out = random_.Normal(a.q.sizes(), GetParam());
  AttentionGradients expected = Gradients(a);
  CpuAttention().backward(a, whole, d_out, expected);
  const int32_t cut = 50;
  at::Tensor dq = at::full(a.q.sizes(), 0.0, at::TensorOptions().dtype(at::kDouble));
  for (const int32_t begin : {0, cut}) {
    AttentionArguments part = a;
    part.k = a.k.narrow(0, begin, begin == 0 ? cut : 90 - cut);
    part.v = a.v.narrow(0, begin, part.k.size(0));
    part.cu_seqlens_q = CuSeqlens({70}, 0);
    part.cu_seqlens_k = CuSeqlens({static_cast<int32_t>(part.k.size(0))}, 0);
    part.diagonal = TensorOf(std::vector<int32_t>{20 - begin});
    AttentionGradients gradients = Gradients(part);
    CpuAttention().backward(part, whole, d_out, gradients);
    dq += gradients.dq.to(at::kDouble);
    EXPECT_LT(GradientError(gradients.dk, expected.dk.narrow(0, begin, part.k.size(0))), tolerance());
    EXPECT_LT(GradientError(gradients.dv, expected.dv.narrow(0, begin, part.k.size(0))), tolerance());
  }
  EXPECT_LT(GradientError(dq, expected.dq), tolerance());
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

// The mask as the contract words it, one score at a time.
TEST(MathAttention, DiagonalLikeLoops) {
  struct Case {
    int32_t queries, keys, diagonal;
    int64_t window;
  };
  for (const Case& c : {Case{5, 7, 2, 0}, Case{5, 7, -2, 0}, Case{5, 7, 9, 0}, Case{5, 7, 1, 3}, Case{6, 4, 2, 2},
                        Case{4, 6, -9, 0}, Case{5, 7, 20, 4}}) {
    TestTensors random(7);
    AttentionArguments a;
    a.q = random.Normal({c.queries, 1, 8}, at::kDouble);
    a.k = random.Normal({c.keys, 1, 8}, at::kDouble);
    a.v = random.Normal({c.keys, 1, 8}, at::kDouble);
    a.cu_seqlens_q = TensorOf(std::vector<int32_t>{0, c.queries});
    a.cu_seqlens_k = TensorOf(std::vector<int32_t>{0, c.keys});
    a.max_q = c.queries;
    a.max_k = c.keys;
    a.diagonal = TensorOf(std::vector<int32_t>{c.diagonal});
    a.window = c.window;
    a.scale = 0.5;
    const AttentionOutput output = MathAttention().forward(a);
    for (int64_t i = 0; i < c.queries; ++i) {
      at::Tensor sum = at::full({8}, 0.0, a.q.options());
      double total = 0;
      for (int64_t j = 0; j < c.keys; ++j) {
        if (j > i + c.diagonal || (c.window > 0 && j <= i + c.diagonal - c.window)) continue;
        const double weight = std::exp(a.scale * (a.q[i][0] * a.k[j][0]).sum().item<double>());
        sum += weight * a.v[j][0];
        total += weight;
      }
      const at::Tensor expected = total > 0 ? sum / total : sum;
      EXPECT_LT((output.out[i][0] - expected).abs().max().item<double>(), 1e-13) << "query " << i;
      const double lse = output.lse[0][i].item<double>();
      if (total > 0) {
        EXPECT_NEAR(lse, std::log(total), 1e-13) << "query " << i;
      } else {
        EXPECT_EQ(lse, -INFINITY) << "query " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AttentionTest, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

TEST(ChooseAttention, AutoTakesTheFirstThatCan) {
  AttentionArguments example;
  example.q = example.k = example.v = at::empty({1, 2, 16}, at::TensorOptions().dtype(at::kFloat));
  EXPECT_EQ(ChooseAttention(BuiltInAttentionBackends(), "auto", {example})->name, "cpu");
  example.causal = false;
  example.window = 4;
  EXPECT_EQ(ChooseAttention(BuiltInAttentionBackends(), "auto", {example})->name, "math");
  const absl::Status refused = ChooseAttention(BuiltInAttentionBackends(), "cpu", {example}).status();
  EXPECT_EQ(ExitCodeOf(refused), ExitCode::kConfig);
  EXPECT_NE(refused.message().find("causal mask"), std::string::npos) << refused;
}

TEST(ChooseAttention, UnknownNamesListTheKnown) {
  const absl::Status status = ChooseAttention(BuiltInAttentionBackends(), "fastest", {AttentionArguments()}).status();
  EXPECT_NE(status.message().find("auto, cpu, flash, math"), std::string::npos) << status;
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
