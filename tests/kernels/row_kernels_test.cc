// Row-wise operations against plain float64 references, forward and backward, in every dtype.
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/base/dropout.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr double kNormEps = 1e-5;

class RowKernels : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::ScalarType dtype() const { return GetParam(); }
  at::Tensor Random(at::IntArrayRef sizes, double deviation = 1) {
    return random_.Normal(sizes, GetParam(), deviation);
  }
  // The same values in float64, as a leaf of the reference's graph.
  static at::Tensor Leaf(const at::Tensor& x) { return x.to(at::kDouble).clone().requires_grad_(); }
  TestTensors random_{21};
};

// Widths below, at and off the vector sizes; rows in one task and in several.
constexpr std::pair<int64_t, int64_t> kRowShapes[] = {{1, 1}, {3, 7}, {5, 64}, {9, 1001}, {1100, 96}, {2, 40000}};

TEST_P(RowKernels, RmsNorm) {
  for (const auto& [rows, width] : kRowShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", width));
    const at::Tensor x = Random({rows, width}), delta = Random({rows, width}), weight = Random({width});
    for (const at::Tensor& d : {at::Tensor(), delta}) {
      const RmsNormResult result = RmsNorm(x, d, weight, kNormEps);
      // The sum is rounded to the dtype before the statistics.
      const at::Tensor h = d.defined() ? (x.to(at::kDouble) + d.to(at::kDouble)).to(dtype()) : x;
      EXPECT_TRUE(result.h.equal(h));
      const at::Tensor y = reference::RmsNorm(h.to(at::kDouble), weight.to(at::kDouble), kNormEps);
      EXPECT_LT(RelativeError(result.y, y), Tolerance(dtype()));
      EXPECT_TRUE(RmsNormAgain(result.h, result.rstd, weight).equal(result.y));
    }
  }
}

// The share that stays, what it becomes, and that a part of the columns or rows drops what the whole does.
TEST_P(RowKernels, Dropout) {
  const at::Tensor x = at::ones({300, 1001}, at::TensorOptions().dtype(dtype()));
  const at::Tensor tokens = at::arange(5'000'000'000, 5'000'000'300, at::TensorOptions().dtype(at::kLong));
  DropoutOptions options;
  options.rate = 0.25;
  options.key = MakeRandomKey(7, RandomPurpose::kDropout, StableId("q"), 0);
  const at::Tensor out = Dropout(x, tokens, options);
  const double mean = out.to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(mean, 1,
              5 * std::sqrt(0.25 / 0.75 / static_cast<double>(x.numel())) + (dtype() == at::kBFloat16 ? 2e-3 : 0));
  const at::Tensor kept = at::ones({1}, x.options()) * (1 / 0.75);
  EXPECT_TRUE(((out == 0) | (out == kept)).all().item<bool>());
  for (const int64_t first : {1, 4, 250, 1000}) {
    options.first_column = first;
    EXPECT_TRUE(Dropout(x.narrow(1, first, 1001 - first).contiguous(), tokens, options)
                    .equal(out.narrow(1, first, 1001 - first)));
  }
  options.first_column = 0;
  EXPECT_TRUE(Dropout(x.narrow(0, 17, 3), tokens.narrow(0, 17, 3), options).equal(out.narrow(0, 17, 3)));
  EXPECT_FALSE(out[0].equal(out[1]));
  options.key = MakeRandomKey(7, RandomPurpose::kDropout, StableId("k"), 0);
  EXPECT_FALSE(Dropout(x, tokens, options).equal(out));
  options.rate = 0;
  EXPECT_TRUE(Dropout(x, tokens, options).equal(x));
}

TEST_P(RowKernels, RmsNormBackward) {
  for (const auto& [rows, width] : kRowShapes) {
    if (width == 1) continue;  // Its gradient is all cancellation.
    SCOPED_TRACE(absl::StrCat(rows, " x ", width));
    const at::Tensor h = Random({rows, width}), weight = Random({width}), dy = Random({rows, width});
    const at::Tensor d_h = Random({rows, width}), start = random_.Normal({width}, ArithmeticType(dtype()));
    const at::Tensor rstd = RmsNorm(h, at::Tensor(), weight, kNormEps).rstd;
    const at::Tensor h_leaf = Leaf(h), weight_leaf = Leaf(weight);
    torch::autograd::backward({reference::RmsNorm(h_leaf, weight_leaf, kNormEps)}, {dy.to(at::kDouble)});

    at::Tensor d_weight = start.clone();
    EXPECT_LT(RelativeError(RmsNormBackward(h, rstd, weight, dy, at::Tensor(), &d_weight), h_leaf.grad()),
              Tolerance(dtype()));
    EXPECT_LT(RelativeError(d_weight, start.to(at::kDouble) + weight_leaf.grad()), Tolerance(at::kFloat));
    const at::Tensor with_residual = RmsNormBackward(h, rstd, weight, dy, d_h, nullptr);
    EXPECT_LT(RelativeError(with_residual, h_leaf.grad() + d_h.to(at::kDouble)), Tolerance(dtype()));
  }
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh};

TEST_P(RowKernels, Gated) {
  for (const Activation activation : kActivations) {
    for (const auto& [rows, width] : kRowShapes) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", width, ", activation ", static_cast<int>(activation)));
      const at::Tensor gate_up = Random({rows, 2 * width}, 4), d_out = Random({rows, width});
      const at::Tensor leaf = Leaf(gate_up), expected = reference::Gated(leaf, activation);
      torch::autograd::backward({expected}, {d_out.to(at::kDouble)});
      EXPECT_LT(RelativeError(GatedForward(gate_up, activation), expected), Tolerance(dtype()));
      const at::Tensor gradient = GatedBackward(gate_up, d_out, activation);
      EXPECT_LT(RelativeError(gradient, leaf.grad()), Tolerance(dtype()));
      EXPECT_TRUE(gradient.equal(GatedBackward(gate_up, d_out, activation, /*in_place=*/true)));
    }
  }
}

TEST_P(RowKernels, GatedWithExtremeGates) {
  const at::Tensor gate_up = TensorOf<float>({-1000, -100, -90, 90, 100, 1000, 2, 2, 2, 2, 2, 2}).view({1, 12});
  for (const Activation activation : kActivations) {
    const at::Tensor out = GatedForward(gate_up.to(dtype()), activation),
                     expected = reference::Gated(gate_up.to(at::kDouble), activation);
    EXPECT_LT(RelativeError(out, expected), Tolerance(dtype()));
    const at::Tensor d_out = at::ones({1, 6}, out.options());
    EXPECT_TRUE(GatedBackward(gate_up.to(dtype()), d_out, activation).isfinite().all().item<bool>());
  }
}

// The offset is added in the arithmetic type: one plus a small weight is not rounded to the weight's.
TEST_P(RowKernels, RmsNormWithOffset) {
  const at::Tensor h = Random({9, 96}), weight = Random({96}) * 1e-3, dy = Random({9, 96});
  const at::Tensor h_leaf = Leaf(h), weight_leaf = Leaf(weight);
  torch::autograd::backward({reference::RmsNorm(h_leaf, weight_leaf + 1, kNormEps)}, {dy.to(at::kDouble)});
  const RmsNormResult result = RmsNorm(h, at::Tensor(), weight, kNormEps, /*offset=*/1);
  const at::Tensor y = reference::RmsNorm(h.to(at::kDouble), weight.to(at::kDouble) + 1, kNormEps);
  EXPECT_LT(RelativeError(result.y, y), Tolerance(dtype()));
  EXPECT_TRUE(RmsNormAgain(h, result.rstd, weight, 1).equal(result.y));
  at::Tensor d_weight = at::zeros({96}, h.options().dtype(ArithmeticType(dtype())));
  EXPECT_LT(RelativeError(RmsNormBackward(h, result.rstd, weight, dy, at::Tensor(), &d_weight, 1), h_leaf.grad()),
            Tolerance(dtype()));
  EXPECT_LT(RelativeError(d_weight, weight_leaf.grad()), Tolerance(at::kFloat));
}

TEST(RopeDeathTest, RefusesPositionsOutsideTheTable) {
  const int64_t positions = 5, half = 3;
  const RopeTable table = {at::ones({positions, half}), at::zeros({positions, half})};
  at::Tensor packed = at::ones({2, 2 * half});
  ApplyRope(packed, /*heads=*/1, 2 * half, TensorOf<int64_t>({0, 4}), table, /*inverse=*/false);
  for (const int64_t bad : {int64_t{5}, int64_t{-1}, int64_t{1} << 40}) {
    EXPECT_DEATH(ApplyRope(packed, 1, 2 * half, TensorOf<int64_t>({0, bad}), table, /*inverse=*/false),
                 absl::StrCat("position ", bad, " outside the rotation table's 5 rows"));
  }
}

TEST_P(RowKernels, RopeRotatesOnlyItsHeads) {
  struct Case {
    int64_t head_dim, pairs;
    bool interleaved;
  };
  for (const auto& [head_dim, pairs, interleaved] : {Case{2, 1, false},
                                                     {6, 3, false},
                                                     {16, 8, false},
                                                     {64, 32, false},
                                                     {128, 64, false},
                                                     {64, 16, false},
                                                     {6, 3, true},
                                                     {64, 32, true},
                                                     {80, 10, true},
                                                     {24, 5, false}}) {
    const int64_t rows = 300, heads = 3, others = 2, num_positions = 50;
    const at::Tensor packed = Random({rows, (heads + others) * head_dim});
    const at::Tensor positions = random_.Ids(rows, num_positions);
    const at::Tensor angles = random_.Normal({num_positions, pairs}, at::kDouble, 3);
    const RopeTable table = {angles.cos().to(ArithmeticType(dtype())), angles.sin().to(ArithmeticType(dtype())),
                             interleaved};
    const auto rotated_part = [&](const at::Tensor& x) { return x.narrow(1, 0, heads * head_dim); };
    const auto other_part = [&](const at::Tensor& x) { return x.narrow(1, heads * head_dim, others * head_dim); };

    at::Tensor rotated = packed.clone();
    ApplyRope(rotated, heads, head_dim, positions, table, /*inverse=*/false);
    const at::Tensor expected =
        reference::Rope(rotated_part(packed).to(at::kDouble).reshape({rows, heads, head_dim}), positions, table);
    EXPECT_LT(RelativeError(rotated_part(rotated), expected.view({rows, -1})), Tolerance(dtype())) << head_dim;
    EXPECT_TRUE(other_part(rotated).equal(other_part(packed)));
    ApplyRope(rotated, heads, head_dim, positions, table, /*inverse=*/true);
    EXPECT_LT(RelativeError(rotated, packed), 2 * Tolerance(dtype())) << head_dim;
  }
}

TEST_P(RowKernels, EmbeddingPicksRowsAndAddsThemBack) {
  const int64_t vocab = 37, width = 130, tokens = 500;
  const at::Tensor weight = Random({vocab, width}), ids = random_.Ids(tokens, vocab), dy = Random({tokens, width});
  EXPECT_TRUE(EmbeddingForward(ids, weight).equal(weight.index_select(0, ids)));
  at::Tensor accumulator = random_.Normal({vocab, width}, ArithmeticType(dtype()));
  const at::Tensor expected = accumulator.to(at::kDouble).index_add(0, ids, dy.to(at::kDouble));
  at::Tensor part = accumulator.narrow(0, 10, 20).clone();  // The other rows are other ranks'.
  AddEmbeddingGradient(ids, dy, accumulator);
  EXPECT_LT(RelativeError(accumulator, expected), Tolerance(at::kFloat));
  AddEmbeddingGradient(ids.sub(10), dy, part);
  EXPECT_TRUE(part.equal(accumulator.narrow(0, 10, 20)));
}

TEST(EmbeddingDeathTest, TokenOutsideTheTable) {
  const at::Tensor weight = at::zeros({4, 2}, at::TensorOptions().dtype(at::kFloat));
  EXPECT_DEATH(EmbeddingForward(TensorOf<int64_t>({0, 4}), weight), "token 4 outside the embedding's 4 rows");
  EXPECT_DEATH(EmbeddingForward(TensorOf<int64_t>({-1}), weight), "token -1");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RowKernels, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

}  // namespace
}  // namespace trireme
