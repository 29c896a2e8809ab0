#include "data/sampling/mixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <utility>
#include <vector>

namespace trireme {
namespace {

TEST(Mixture, QuotasAreExactAtTheEndOfEveryBlock) {
  const std::vector<double> shares = {0.75, 0.15625, 0.09375 - 1.0 / 4096, 1.0 / 4096};  // Exact in binary.
  const auto mixture = Mixture::Create(shares, 5, /*shuffle=*/true);
  ASSERT_TRUE(mixture.ok());
  std::vector<int64_t> drawn(shares.size());
  int64_t sample = 0;
  for (int block = 1; block <= 40; ++block) {
    std::vector<int64_t> expected;
    int64_t end = 0;
    for (const double share : shares) {
      expected.push_back(static_cast<int64_t>(std::floor(block * 1024 * share)));
      end += expected.back();
    }
    for (; sample < end; ++sample) ++drawn[mixture->At(sample).source];
    EXPECT_EQ(drawn, expected) << "block " << block;
  }
}

TEST(Mixture, EverySourceIsConsumedWithoutGapsOrRepeats) {
  const auto mixture = Mixture::Create({3, 1e-3, 0.3}, 5, /*shuffle=*/true);
  ASSERT_TRUE(mixture.ok());
  std::vector<std::set<int64_t>> drawn(3);
  constexpr int64_t kSamples = 50000;
  for (int64_t i = 0; i < kSamples; ++i) {
    const Mixture::Draw draw = mixture->At(i);
    EXPECT_TRUE(drawn[draw.source].insert(draw.index).second);
  }
  for (const auto& indices : drawn) EXPECT_LT(*indices.rbegin(), static_cast<int64_t>(indices.size()) + 1024);
  EXPECT_NEAR(static_cast<double>(drawn[1].size()), kSamples * 1e-3 / 3.301, 2);
}

TEST(Mixture, SharesHoldFarOut) {
  const auto mixture = Mixture::Create({1, 2}, 5, /*shuffle=*/true);
  const int64_t far = int64_t{3} << 40;
  const Mixture::Draw draw = mixture->At(far);
  const double share = draw.source == 0 ? 1.0 / 3 : 2.0 / 3;
  EXPECT_NEAR(static_cast<double>(draw.index) / static_cast<double>(far), share, 1e-9);
}

TEST(Mixture, SourcesAreInterleavedWithinABlock) {
  const auto mixture = Mixture::Create({1, 1}, 5, /*shuffle=*/true);
  int changes = 0;
  for (int64_t i = 1; i < 1024; ++i) changes += mixture->At(i).source != mixture->At(i - 1).source;
  EXPECT_NEAR(changes, 512, 80);
}

TEST(Mixture, RefusesImpossibleWeights) {
  for (const std::vector<double>& weights :
       std::vector<std::vector<double>>{{}, {0}, {1, -1}, {1, NAN}, {1, INFINITY}, {1e308, 1e308}}) {
    EXPECT_EQ(ExitCodeOf(Mixture::Create(weights, 1, true).status()), ExitCode::kConfig);
  }
}

}  // namespace
}  // namespace trireme
