#include "serving/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace trireme {
namespace {

constexpr int kDraws = 20000;

// How often each id is drawn, over many steps.
std::map<int64_t, double> Shares(const std::vector<float>& logits, const SamplingOptions& options) {
  std::map<int64_t, double> shares;
  for (int step = 0; step < kDraws; ++step)
    shares[SampleToken(logits.data(), static_cast<int64_t>(logits.size()), options, step)] += 1.0 / kDraws;
  return shares;
}

SamplingOptions At(double temperature) {
  SamplingOptions options;
  options.temperature = temperature;
  return options;
}

// Natural logarithms, so that softmax gives the numbers back.
std::vector<float> LogOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST(Sampling, GreedyTakesTheLowestOfEqualIds) {
  const std::vector<float> logits = {1, 3, -2, 3, 0};
  EXPECT_EQ(SampleToken(logits.data(), 5, At(0), 0), 1);
}

// Of a model that diverged. What has no order must not be sorted.
TEST(Sampling, NanGivesItsOwnId) {
  for (const int64_t size : {3, 100, 5000}) {
    for (const int64_t at : {int64_t{0}, size / 2, size - 1}) {
      std::vector<float> logits(static_cast<size_t>(size));
      for (int64_t i = 0; i < size; ++i) logits[static_cast<size_t>(i)] = static_cast<float>(i * 7919 % 1013);
      for (int64_t i = at; i < size; i += 3) logits[static_cast<size_t>(i)] = std::nanf("");
      SamplingOptions top_k = At(1), top_p = At(1);
      top_k.top_k = 2;
      top_p.top_p = 0.9;
      for (const SamplingOptions& options : {At(0), At(1), top_k, top_p}) {
        const int64_t id = SampleToken(logits.data(), size, options, 0);
        EXPECT_EQ(id, at) << size << " logits, top_k " << options.top_k << ", top_p " << options.top_p;
        EXPECT_TRUE(std::isnan(LogProbability(logits.data(), size, id)));
      }
    }
  }
}

TEST(Sampling, DrawsFromTheSoftmax) {
  const std::map<int64_t, double> shares = Shares(LogOf({0.1, 0.5, 0.15, 0.25}), At(1));
  EXPECT_NEAR(shares.at(0), 0.1, 0.015);
  EXPECT_NEAR(shares.at(1), 0.5, 0.015);
  EXPECT_NEAR(shares.at(2), 0.15, 0.015);
  EXPECT_NEAR(shares.at(3), 0.25, 0.015);
}

TEST(Sampling, TemperatureSharpens) {
  // Squared and normalized.
  const std::map<int64_t, double> shares = Shares(LogOf({0.6, 0.3, 0.1}), At(0.5));
  EXPECT_NEAR(shares.at(0), 0.36 / 0.46, 0.015);
  EXPECT_NEAR(shares.at(1), 0.09 / 0.46, 0.015);
}

TEST(Sampling, TopKKeepsTheLikeliest) {
  SamplingOptions options = At(1);
  options.top_k = 2;
  const std::map<int64_t, double> shares = Shares(LogOf({0.1, 0.5, 0.15, 0.25}), options);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_NEAR(shares.at(1), 0.5 / 0.75, 0.015);
  EXPECT_NEAR(shares.at(3), 0.25 / 0.75, 0.015);
}

TEST(Sampling, TopPKeepsTheFewestThatReachIt) {
  SamplingOptions options = At(1);
  options.top_p = 0.6;
  EXPECT_EQ(Shares(LogOf({0.1, 0.5, 0.15, 0.25}), options).size(), 2u);
  options.top_p = 0.76;
  EXPECT_EQ(Shares(LogOf({0.1, 0.5, 0.15, 0.25}), options).size(), 3u);
  options.top_p = 0;
  EXPECT_EQ(Shares(LogOf({0.1, 0.5, 0.15, 0.25}), options).size(), 1u) << "at least one";
}

TEST(Sampling, SeedAndStepDecide) {
  const std::vector<float> logits(1000, 0.0f);
  SamplingOptions options = At(1), other = At(1);
  other.seed = 5;
  int same_step = 0, same_seed = 0;
  for (uint64_t step = 0; step < 50; ++step) {
    const int64_t id = SampleToken(logits.data(), 1000, options, step);
    EXPECT_EQ(id, SampleToken(logits.data(), 1000, options, step));
    same_step += id == SampleToken(logits.data(), 1000, other, step) ? 1 : 0;
    same_seed += id == SampleToken(logits.data(), 1000, options, step + 1) ? 1 : 0;
  }
  EXPECT_LT(same_step, 3);
  EXPECT_LT(same_seed, 3);
}

TEST(Sampling, LogProbabilityIsThatOfTheSoftmax) {
  const std::vector<float> logits = {1000, 1001, 998};
  const double sum = std::exp(-1.0) + 1 + std::exp(-3.0);
  EXPECT_NEAR(LogProbability(logits.data(), 3, 0), -1 - std::log(sum), 1e-12);
}

}  // namespace
}  // namespace trireme
