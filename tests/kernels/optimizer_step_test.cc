// Parameter updates against libtorch's fused AdamW, a plain double computation, and the laws of stochastic rounding.
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/base/ops.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr double kRate = 3e-3, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1;

AdamWStep StepOf(int64_t step, double gradient_scale) {
  AdamWStep s;
  s.gradient_scale = static_cast<float>(gradient_scale);
  s.beta1 = static_cast<float>(kBeta1);
  s.beta2 = static_cast<float>(kBeta2);
  s.one_minus_beta1 = static_cast<float>(1 - kBeta1);
  s.one_minus_beta2 = static_cast<float>(1 - kBeta2);
  s.step_size = static_cast<float>(kRate / (1 - std::pow(kBeta1, step)));
  s.inverse_root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(kBeta2, step)));
  s.eps = static_cast<float>(kEps);
  return s;
}
const float kKeep = static_cast<float>(1 - kRate * kDecay);

TEST(AdamW, LikeTorchsFusedOver20Steps) {
  TestTensors random(51);
  const int64_t n = 40001;  // Several tasks, an odd tail.
  at::Tensor p = random.Normal({n}, at::kFloat), m = at::zeros_like(p), v = at::zeros_like(p);
  at::Tensor copy = at::zeros({n}, at::TensorOptions().dtype(at::kBFloat16));
  at::Tensor torch_p = p.clone(), torch_m = m.clone(), torch_v = v.clone();
  at::Tensor torch_step = at::zeros({}, p.options());
  for (int64_t step = 1; step <= 20; ++step) {
    const at::Tensor g = random.Normal({n}, at::kFloat, 0.1);
    AdamWUpdate(StepOf(step, 0.5), kKeep, p, g, m, v, copy);
    torch_step += 1;
    at::_fused_adamw_({torch_p}, {g * 0.5}, {torch_m}, {torch_v}, {}, {torch_step}, kRate, kBeta1, kBeta2, kDecay, kEps,
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
    expected[i] = p[i].item<double>() * (1 - kRate * kDecay) - kRate * m_hat / (std::sqrt(v_hat) + kEps);
  }
  AdamWUpdate(StepOf(7, 0.25), kKeep, p, g, m, v, at::Tensor());
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
      SgdUpdate(0.5f, 0.1f, static_cast<float>(momentum), 0.99f, p, g, velocity, copy);
      expected_velocity = expected_velocity * momentum + g.to(at::kDouble) * 0.5;
      expected = expected * 0.99 - expected_velocity * 0.1;
    }
    EXPECT_LT(RelativeError(p, expected), 1e-6) << momentum;
    EXPECT_TRUE(copy.equal(p.to(at::kBFloat16)));
  }
}

// All elements hold `start`, and one AdamW step moves them to `target` in float32 before rounding.
at::Tensor RoundedCopies(float target, int64_t n, RandomKey key, int64_t first_index = 0) {
  at::Tensor p = at::full({n}, target, at::TensorOptions().dtype(at::kBFloat16));
  at::Tensor g = at::zeros({n}, at::TensorOptions().dtype(at::kFloat)), m = at::zeros_like(g), v = at::zeros_like(g);
  // With no gradient the step is p * keep: keep turns the bfloat16 value into `target`.
  const float stored = p[0].item<float>();
  AdamWUpdateBf16(StepOf(1, 1), target / stored, p, g, m, v, key, first_index);
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
      AdamWUpdateBf16(StepOf(1, 1), kKeep, part(p), part(g), part(m), part(v), key, begin);
      begin = end;
    }
    return p;
  };
  const at::Tensor whole = update({});
  EXPECT_TRUE(update({1, 3, 10, 16391, 30003}).equal(whole));
  EXPECT_TRUE(update({25000}).equal(whole));
  EXPECT_FALSE(whole.equal(start));
}

}  // namespace
}  // namespace trireme
