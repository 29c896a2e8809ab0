// Parameter updates against libtorch's fused AdamW, a plain double computation, and the laws of stochastic rounding.
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/base/ops.h"
#include "tests/kernels/decisions.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr double kRate = 3e-3, kBeta1 = 0.9, kBeta2 = 0.95, kAdamEps = 1e-8, kDecay = 0.1;

const float kKeep = static_cast<float>(1 - kRate * kDecay);

AdamWRule Rule(float keep = kKeep) {
  AdamWRule rule;
  rule.rate = kRate;
  rule.keep = keep;
  rule.beta1 = static_cast<float>(kBeta1);
  rule.beta2 = static_cast<float>(kBeta2);
  rule.one_minus_beta1 = static_cast<float>(1 - kBeta1);
  rule.one_minus_beta2 = static_cast<float>(1 - kBeta2);
  rule.eps = static_cast<float>(kAdamEps);
  return rule;
}

// The part [begin, ...) of a matrix that is nowhere cut.
WholeIndex From(int64_t begin) {
  WholeIndex index;
  index.begin = begin;
  return index;
}

TEST(AdamW, LikeTorchsFusedOver20Steps) {
  TestTensors random(51);
  const int64_t n = 40001;  // Several tasks, an odd tail.
  at::Tensor p = random.Normal({n}, at::kFloat), m = at::zeros_like(p), v = at::zeros_like(p);
  at::Tensor copy = at::zeros({n}, at::TensorOptions().dtype(at::kBFloat16));
  at::Tensor torch_p = p.clone(), torch_m = m.clone(), torch_v = v.clone();
  at::Tensor torch_step = at::zeros({}, p.options());
  for (int64_t step = 1; step <= 20; ++step) {
    const at::Tensor g = random.Normal({n}, at::kFloat, 0.1);
    AdamWUpdate(Rule(), DecisionTo(0.5, step), p, g, m, v, copy);
    torch_step += 1;
    at::_fused_adamw_({torch_p}, {g * 0.5}, {torch_m}, {torch_v}, {}, {torch_step}, kRate, kBeta1, kBeta2, kDecay,
                      kAdamEps,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
  EXPECT_LT(RelativeError(p, torch_p), 1e-6);
  EXPECT_LT(RelativeError(m, torch_m), 1e-6);
  EXPECT_LT(RelativeError(v, torch_v), 1e-6);
  EXPECT_TRUE(copy.equal(p.to(at::kBFloat16)));
}

TEST(AdamW, LikeDoubleArithmetic) {
  TestTensors random(52);
  const int64_t n = 1000;
  at::Tensor p = random.Normal({n}, at::kFloat), m = random.Normal({n}, at::kFloat, 0.01);
  at::Tensor v = random.Normal({n}, at::kFloat, 0.01).pow(2);
  const at::Tensor g = random.Normal({n}, at::kFloat, 0.1);
  std::vector<double> expected(n);
  for (int64_t i = 0; i < n; ++i) {
    const double gradient = 0.25 * g[i].item<double>();
    const double m_new = kBeta1 * m[i].item<double>() + (1 - kBeta1) * gradient;
    const double v_new = kBeta2 * v[i].item<double>() + (1 - kBeta2) * gradient * gradient;
    const double m_hat = m_new / (1 - std::pow(kBeta1, 7)), v_hat = v_new / (1 - std::pow(kBeta2, 7));
    expected[i] = p[i].item<double>() * (1 - kRate * kDecay) - kRate * m_hat / (std::sqrt(v_hat) + kAdamEps);
  }
  AdamWUpdate(Rule(), DecisionTo(0.25, 7), p, g, m, v, at::Tensor());
  EXPECT_LT(RelativeError(p, TensorOf(expected)), 1e-6);
}

TEST(Sgd, PlainMomentumAndDecay) {
  TestTensors random(53);
  const int64_t n = 20000;
  for (const double momentum : {0.0, 0.9}) {
    at::Tensor p = random.Normal({n}, at::kFloat), velocity = momentum > 0 ? at::zeros_like(p) : at::Tensor();
    at::Tensor copy = at::zeros({n}, at::TensorOptions().dtype(at::kBFloat16));
    at::Tensor expected = p.to(at::kDouble), expected_velocity = at::zeros_like(expected);
    for (int step = 0; step < 5; ++step) {
      const at::Tensor g = random.Normal({n}, at::kFloat);
      SgdUpdate({0.1f, static_cast<float>(momentum), 0.99f}, DecisionTo(0.5), p, g, velocity, copy);
      expected_velocity = expected_velocity * momentum + g.to(at::kDouble) * 0.5;
      expected = expected * 0.99 - expected_velocity * 0.1;
    }
    EXPECT_LT(RelativeError(p, expected), 1e-6) << momentum;
    EXPECT_TRUE(copy.equal(p.to(at::kBFloat16)));
  }
}

TEST(Lion, LikeDoubleArithmeticOver20Steps) {
  TestTensors random(57);
  const int64_t n = 20001;
  LionRule rule;
  rule.rate = 1e-3F;
  rule.keep = static_cast<float>(1 - 1e-3 * 0.3);
  at::Tensor p = random.Normal({n}, at::kFloat), m = at::zeros_like(p), copy = at::zeros({n}, at::kBFloat16);
  at::Tensor expected = p.to(at::kDouble), momentum = at::zeros_like(expected);
  for (int step = 0; step < 20; ++step) {
    at::Tensor g = random.Normal({n}, at::kFloat, 0.1);
    g.narrow(0, 0, 10).zero_();  // no direction, no step
    LionUpdate(rule, DecisionTo(0.5), p, g, m, copy);
    const at::Tensor gradient = g.to(at::kDouble) * 0.5;
    expected = expected * (1 - 1e-3 * 0.3) - (momentum * 0.9 + gradient * 0.1).sign() * 1e-3;
    momentum = momentum * 0.99 + gradient * 0.01;
  }
  EXPECT_LT(RelativeError(p, expected), 1e-6);
  EXPECT_LT(RelativeError(m, momentum), 1e-6);
  EXPECT_TRUE(copy.equal(p.to(at::kBFloat16)));
}

TEST(NewtonSchulz, BringsSingularValuesNearOne) {
  TestTensors random(58);
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{24, 70}, {70, 24}, {33, 33}, {1, 9}, {9, 1}}) {
    const at::Tensor x = random.Normal({rows, columns}, at::kFloat);
    // The exact arithmetic, by singular values: X = U S V^T becomes U p(S) V^T.
    const at::Tensor wide = (rows > columns ? x.t() : x).to(at::kDouble);
    at::Tensor expected = wide / wide.norm();
    for (int step = 0; step < 5; ++step) {
      const at::Tensor gram = at::matmul(expected, expected.t());
      expected = expected * 3.4445 + at::matmul(gram * -4.7750 + at::matmul(gram, gram) * 2.0315, expected);
    }
    if (rows > columns) expected = expected.t();
    const at::Tensor got = Orthogonalized(x, {});
    EXPECT_LT(RelativeError(got, expected.contiguous()), 1e-5) << rows << " x " << columns;
    NewtonSchulzRule rounded;
    rounded.type = at::kBFloat16;
    // Five steps enlarge what rounding does to small singular values.
    EXPECT_LT(RelativeError(Orthogonalized(x, rounded), expected.contiguous()), 0.15) << rows << " x " << columns;
  }
  EXPECT_EQ(Orthogonalized(at::zeros({4, 5}), {}).abs().sum().item<float>(), 0) << "no gradient, no direction";
}

// All elements hold `start`, and one AdamW step moves them to `target` in float32 before rounding.
at::Tensor RoundedCopies(float target, int64_t n, RandomKey key, int64_t first_index = 0) {
  at::Tensor p = at::full({n}, target, at::TensorOptions().dtype(at::kBFloat16));
  at::Tensor g = at::zeros({n}, at::TensorOptions().dtype(at::kFloat)), m = at::zeros_like(g), v = at::zeros_like(g);
  // With no gradient the step is p * keep: keep turns the bfloat16 value into `target`.
  const float stored = p[0].item<float>();
  AdamWUpdateBf16(Rule(target / stored), DecisionTo(1), p, g, m, v, key, From(first_index));
  return p;
}

TEST(StochasticRounding, IsUnbiased) {
  const RandomKey key = {17, 4};
  const int64_t n = 1 << 18;
  for (const float target : {1.0017f, -3.013f, 0.7003f, 1e-20f}) {
    const at::Tensor p = RoundedCopies(target, n, key).to(at::kDouble);
    const double step = p.max().item<double>() - p.min().item<double>();  // Two neighbours of the value.
    EXPECT_GT(step, 0) << target;
    EXPECT_LE(step, std::abs(target) / 128 * 1.001) << target;
    // The standard error of the mean is at most step / 2 / sqrt(n).
    EXPECT_NEAR(p.mean().item<double>(), target, 5 * step / 2 / std::sqrt(n)) << target;
  }
}

TEST(StochasticRounding, ExactValuesStay) {
  const at::Tensor p = RoundedCopies(1.5f, 4096, {1, 2});
  EXPECT_TRUE(p.eq(1.5).all().item<bool>());
}

TEST(StochasticRounding, InfinityAndNanPass) {
  for (uint32_t random = 0; random < 65536; random += 255) {
    EXPECT_EQ(StochasticRoundToBf16(INFINITY, random).bits, 0x7F80);
    EXPECT_EQ(StochasticRoundToBf16(-INFINITY, random).bits, 0xFF80);
    EXPECT_TRUE(std::isnan(ToFloat(StochasticRoundToBf16(NAN, random))));
    // A NaN whose payload is in the cut-off half only.
    EXPECT_TRUE(std::isnan(ToFloat(StochasticRoundToBf16(BitsFloat(0x7F800001), random))));
  }
}

TEST(StochasticRounding, SameBitsForAnySplit) {
  TestTensors random(54);
  const int64_t n = 50000;
  const RandomKey key = MakeRandomKey(9, RandomPurpose::kStochasticRounding, StableId("w"), 3);
  const at::Tensor start = random.Normal({n}, at::kBFloat16), g = random.Normal({n}, at::kFloat);
  const auto update = [&](std::vector<int64_t> cuts) {
    at::Tensor p = start.clone(), m = at::zeros_like(g), v = at::zeros_like(g);
    cuts.push_back(n);
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, end - begin); };
      AdamWUpdateBf16(Rule(), DecisionTo(1), part(p), part(g), part(m), part(v), key, From(begin));
      begin = end;
    }
    return p;
  };
  const at::Tensor whole = update({});
  EXPECT_TRUE(update({1, 3, 10, 16391, 30003}).equal(whole));
  EXPECT_TRUE(update({25000}).equal(whole));
  EXPECT_FALSE(whole.equal(start));
}

// Columns of a matrix, as a tensor rank holds them, in one call: the bits belong to the elements of the whole.
TEST(StochasticRounding, ColumnsOfAMatrixDrawTheWholesBits) {
  TestTensors random(55);
  const int64_t rows = 300, columns = 130;
  const RandomKey key = {3, 4};
  const at::Tensor start = random.Normal({rows, columns}, at::kBFloat16),
                   g = random.Normal({rows, columns}, at::kFloat);
  at::Tensor whole = start.clone(), whole_m = at::zeros_like(g), whole_v = at::zeros_like(g);
  AdamWUpdateBf16(Rule(), DecisionTo(1), whole, g, whole_m, whole_v, key, From(0));
  struct Columns {
    int64_t first, width;
  };
  for (const Columns c : {Columns{0, 65}, Columns{65, 65}, Columns{8, 64}, Columns{129, 1}}) {
    const int64_t first = c.first, width = c.width;
    const auto cut = [&](const at::Tensor& x) { return x.narrow(1, first, width).contiguous().view({-1}); };
    // The shard begins in the middle of a row.
    const int64_t begin = 3 * width + width / 2, n = rows * width - begin;
    at::Tensor p = cut(start).narrow(0, begin, n), m = at::zeros({n}, g.options()), v = at::zeros({n}, g.options());
    WholeIndex index;
    index.origin = first;
    index.begin = begin;
    index.width = width;
    index.stride = columns;
    AdamWUpdateBf16(Rule(), DecisionTo(1), p, cut(g).narrow(0, begin, n), m, v, key, index);
    EXPECT_TRUE(p.equal(cut(whole).narrow(0, begin, n))) << first << ", " << width;
  }
}

// Against bitsandbytes, byte for byte: tests/oracle/optimizer_oracle.py.
TEST(EightBitMoments, HoldWhatTheyAreOfAndNothingOfTinyOnes) {
  TestTensors random(59);
  const MomentTables tables = MakeMomentTables(at::kCPU);
  const int64_t n = 2 * kMomentBlock + 10;
  at::Tensor g = random.Normal({n}, at::kFloat), p = random.Normal({n}, at::kFloat), exact = p.clone();
  g.narrow(0, 0, kMomentBlock).mul_(1e-30);  // the second moments underflow, the first's scale has no inverse
  g.narrow(0, 0, 1).fill_(0);
  const auto zeros = [](int64_t size, at::ScalarType type) { return at::zeros({size}, type); };
  EightBitMoments moments = {zeros(n, at::kByte), zeros(n, at::kByte), zeros(3, at::kFloat), zeros(3, at::kFloat)};
  at::Tensor m = at::zeros_like(p), v = at::zeros_like(p);
  for (int64_t step = 1; step <= 3; ++step) {
    AdamW8Update(Rule(), DecisionTo(1e-9, step), p, g, moments, tables, at::Tensor(), {}, {});
    AdamWUpdate(Rule(), DecisionTo(1e-9, step), exact, g, m, v, at::Tensor());
    EXPECT_TRUE(p.isfinite().all().item<bool>()) << step;
  }
  // Of the other blocks a code is its moment to an eighth, or to a part of the block's largest.
  const at::Tensor scales = moments.first_absmax.narrow(0, 1, 1),
                   codes = moments.first.narrow(0, kMomentBlock, kMomentBlock);
  const at::Tensor values = tables.first.index_select(0, codes.to(at::kLong)) * scales;
  const at::Tensor truth = m.narrow(0, kMomentBlock, kMomentBlock);
  EXPECT_LT(RelativeError(values, truth), 0.05);
  // Clipped to nothing, the step is the decay's alone up to eps.
  EXPECT_LT(RelativeError(p, exact), 1e-2);
}

TEST(UpdateDecision, SkippedUpdatesChangeNothing) {
  TestTensors random(56);
  const at::Tensor start = random.Normal({1000}, at::kFloat), g = random.Normal({1000}, at::kFloat);
  UpdateDecision skip;
  skip.apply = 0;
  at::Tensor p = start.clone(), m = at::zeros_like(g), v = at::zeros_like(g), velocity = at::zeros_like(g);
  AdamWUpdate(Rule(), TensorOf(skip), p, g, m, v, at::Tensor());
  SgdUpdate({0.1f, 0.9f, 0.99f}, TensorOf(skip), p, g, velocity, at::Tensor());
  EXPECT_TRUE(p.equal(start));
  at::Tensor rounded = start.to(at::kBFloat16);
  AdamWUpdateBf16(Rule(), TensorOf(skip), rounded, g, m, v, {1, 2}, From(0));
  EXPECT_TRUE(rounded.equal(start.to(at::kBFloat16)));
  for (const at::Tensor& state : {m, v, velocity}) EXPECT_EQ(state.abs().sum().item<float>(), 0);
}

TEST(UpdateDecision, CountsUpdatesAndStopsForGood) {
  DecisionRule rule;
  rule.max_norm = 1;
  rule.max_consecutive_skips = 1;
  const UpdateDecision first = Decide(rule, 2, 3, 16, UpdateDecision());
  EXPECT_EQ(first.norm, 4);
  EXPECT_EQ(first.clip_factor, 1 / (4 + 1e-6));
  EXPECT_EQ(first.updates, 1);
  EXPECT_EQ(first.first_correction, 1 - 0.9);
  const UpdateDecision skipped = Decide(rule, NAN, 3, 16, first);
  EXPECT_EQ(skipped.apply, 0);
  EXPECT_EQ(skipped.consecutive_skips, 1);
  EXPECT_EQ(skipped.updates, 1) << "a skipped step is no update";
  const UpdateDecision good = Decide(rule, 2, 3, 0.25, skipped);
  EXPECT_EQ(good.apply, 1);
  EXPECT_EQ(good.clip_factor, 1);
  EXPECT_EQ(good.updates, 2);
  UpdateDecision bad = Decide(rule, 2, 3, INFINITY, skipped);
  EXPECT_EQ(bad.stopped, 1) << "two in a row are too many";
  const UpdateDecision after = Decide(rule, 2, 3, 1, bad);
  EXPECT_EQ(after.apply, 0) << "the weights stay until the host has noticed";
  rule.max_consecutive_skips = 0;
  EXPECT_EQ(Decide(rule, NAN, 3, 1, first).stopped, 1);
}

TEST(UpdateDecision, AddsInTheOrderOfTheRanks) {
  const at::Tensor parts = TensorOf(std::vector<double>{1e16, 1, 1e16, 1, 2, 1, -1e16, 4, -1e16, 1, 8, 1});
  const at::Tensor loss_ranks = TensorOf(std::vector<int64_t>{0, 2, 3}), norm_ranks = TensorOf(std::vector<int64_t>{1});
  at::Tensor decision = TensorOf(UpdateDecision());
  DecideUpdate({}, parts, loss_ranks, norm_ranks, decision, decision);
  EXPECT_EQ(DecisionIn(decision).loss_sum, 1);
  EXPECT_EQ(DecisionIn(decision).lse_square_sum, 13);
  EXPECT_EQ(DecisionIn(decision).norm, 1);
}

}  // namespace
}  // namespace trireme
