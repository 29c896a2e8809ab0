#include "parallel/pipeline/balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "launch/base/status.h"

namespace trireme {
namespace {

struct Score {
  double largest = std::numeric_limits<double>::infinity();
  double squares = std::numeric_limits<double>::infinity();
};

Score ScoreOf(const std::vector<double>& costs, const std::vector<int>& units) {
  Score score = {0, 0};
  for (double sum : CostPerStage(costs, units)) {
    score.largest = std::max(score.largest, sum);
    score.squares += sum * sum;
  }
  return score;
}

// The best over all cuts, by trying them.
void TryAll(const std::vector<double>& costs, int num_stages, std::vector<int>& units, Score& best) {
  const int used = std::accumulate(units.begin(), units.end(), 0);
  const int left = static_cast<int>(costs.size()) - used, stages_left = num_stages - static_cast<int>(units.size());
  if (stages_left == 1) {
    units.push_back(left);
    const Score score = ScoreOf(costs, units);
    if (score.largest < best.largest || (score.largest == best.largest && score.squares < best.squares)) best = score;
    units.pop_back();
    return;
  }
  for (int take = 1; take <= left - (stages_left - 1); ++take) {
    units.push_back(take);
    TryAll(costs, num_stages, units, best);
    units.pop_back();
  }
}

TEST(BalanceStages, IsTheBestOfAllCuts) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<double> costs(1 + random() % 9);
    // Whole numbers add without rounding, so the two searches must agree exactly; zeros and ties occur.
    for (double& cost : costs) cost = random() % 6;
    const int num_stages = 1 + static_cast<int>(random() % costs.size());
    const auto units = BalanceStages(costs, num_stages);
    ASSERT_TRUE(units.ok()) << units.status();
    ASSERT_EQ(units->size(), static_cast<size_t>(num_stages));
    ASSERT_EQ(std::accumulate(units->begin(), units->end(), size_t{0}), costs.size());
    EXPECT_GE(*std::min_element(units->begin(), units->end()), 1);
    Score best;
    std::vector<int> empty;
    TryAll(costs, num_stages, empty, best);
    EXPECT_EQ(ScoreOf(costs, *units).largest, best.largest);
    EXPECT_EQ(ScoreOf(costs, *units).squares, best.squares);
  }
}

TEST(BalanceStages, EvensOutTheStagesThatTheLargestLeavesFree) {
  // The head of 100 is a stage whatever happens; the rest is 2, 2, 2 and not 1, 1, 4.
  EXPECT_EQ(BalanceStages({1, 1, 1, 1, 1, 1, 100}, 4).value(), (std::vector<int>{2, 2, 2, 1}));
}

TEST(BalanceStages, GivesALightEmbeddingAndAHeavyHeadTheirDue) {
  EXPECT_EQ(BalanceStages({0.1, 1, 1, 1, 1, 1, 1, 2}, 2).value(), (std::vector<int>{5, 3}));
}

TEST(BalanceStages, OnATieTheFirstStagesGetFewerUnits) {
  EXPECT_EQ(BalanceStages({1, 1, 1, 1, 1}, 2).value(), (std::vector<int>{2, 3}));
}

TEST(BalanceStages, RefusesFewerUnitsThanStagesAndCostsThatAreNone) {
  EXPECT_EQ(ExitCodeOf(BalanceStages({1, 1}, 3).status()), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(BalanceStages({}, 1).status()), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(BalanceStages({1, 1}, 0).status()), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(BalanceStages({1, -1}, 1).status()), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(BalanceStages({1, std::numeric_limits<double>::quiet_NaN()}, 1).status()), ExitCode::kConfig);
}

TEST(CostPerStage, SumsTheUnitsOfEachStage) {
  EXPECT_EQ(CostPerStage({1, 2, 3, 4}, {1, 3}), (std::vector<double>{1, 9}));
}

}  // namespace
}  // namespace trireme
