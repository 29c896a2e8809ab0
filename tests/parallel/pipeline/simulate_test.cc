#include "parallel/pipeline/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/validate.h"
#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

// Sums of some hundred doubles of about 1.
constexpr double kRounding = 1e-9;

Timeline TimesOf(const Schedule& schedule, const StageCosts& stage) {
  return Simulate(schedule, EqualCosts(schedule, stage));
}

// The bubble does not depend on how F and B compare.
const StageCosts kStages[] = {{1, 1, 1}, {1, 1.5, 0.5}, {0.7, 2, 1}};

TEST(Simulate, BubbleOfGPipeAndOneForwardOneBackwardIsThePublishedOne) {
  for (const char* name : {"GPipe", "1F1B"}) {
    for (const ScheduleShape& shape : Shapes(name, 8, 32)) {
      for (const StageCosts& stage : kStages) {
        const double p = shape.num_ranks, m = shape.num_microbatches;
        EXPECT_NEAR(TimesOf(Make(name, shape), stage).bubble(), (p - 1) / (m + p - 1), kRounding)
            << Describe(name, shape);
      }
    }
  }
}

TEST(Simulate, BubbleOfInterleavedIsThePublishedOneFromAsManyMicrobatchesAsRanks) {
  for (const ScheduleShape& shape : Shapes("Interleaved1F1B", 8, 32)) {
    if (shape.num_microbatches < shape.num_ranks) continue;
    for (const StageCosts& stage : kStages) {
      const double p = shape.num_ranks, m = shape.num_microbatches, v = shape.stages_per_rank;
      EXPECT_NEAR(TimesOf(Make("Interleaved1F1B", shape), stage).bubble(), (p - 1) / (v * m + p - 1), kRounding)
          << Describe("Interleaved1F1B", shape);
    }
  }
}

TEST(Simulate, TotalOfZeroBubbleH1IsThePublishedOneWhereTheWeightGradientIsNoLongerThanFAndI) {
  const StageCosts shorter[] = {{1, 1, 1}, {1, 2, 1}, {2, 1, 1}, {1, 1, 0.5}, {3, 1, 0.25}, {1, 0.8, 0.8}, {1, 3, 0}};
  for (const ScheduleShape& shape : Shapes("ZB-H1", 8, 32)) {
    if (shape.num_microbatches < shape.num_ranks) continue;
    for (const StageCosts& stage : shorter) {
      const double f = stage.forward_seconds, i = stage.input_gradient_seconds, w = stage.weight_gradient_seconds;
      const double expected = shape.num_microbatches * (f + i + w) + (shape.num_ranks - 1) * (f + i - w);
      EXPECT_NEAR(TimesOf(Make("ZB-H1", shape), stage).total, expected, kRounding) << Describe("ZB-H1", shape);
    }
  }
}

TEST(Simulate, ZeroBubbleH1IsNeverSlowerThanOneForwardOneBackward) {
  for (const ScheduleShape& shape : Shapes("ZB-H1", 8, 32)) {
    for (const StageCosts& stage : {StageCosts{1, 1, 1}, {1, 1, 2}, {0.2, 1, 1}, {1, 2, 2.5}, {3, 1, 1.5}}) {
      EXPECT_LE(TimesOf(Make("ZB-H1", shape), stage).total, TimesOf(Make("1F1B", shape), stage).total + kRounding)
          << Describe("ZB-H1", shape);
    }
  }
}

TEST(Simulate, ZeroBubbleVWaitsOnlyForTheFirstAndTheLastMicrobatchToCome) {
  for (const ScheduleShape& shape : Shapes("ZB-V", 8, 32)) {
    const int p = shape.num_ranks, m = shape.num_microbatches;
    const double total = TimesOf(Make("ZB-V", shape), {1, 1, 1}).total;
    // The last rank begins p - 1 late and then has 6 m to do.
    EXPECT_GE(total, 6 * m + p - 1);
    // It reaches that where the memory bound (p microbatches) never binds or binds in a steady state.
    if (m == p || m >= 2 * p - 1) {
      EXPECT_EQ(total, 6 * m + p - 1) << Describe("ZB-V", shape);
    }
  }
}

TEST(Simulate, ZeroBubbleVMakesRoomForForwardsWhenMemoryIsFull) {
  // What PyTorch's ZBVZeroBubble takes; schedule_oracle.py compares them all.
  EXPECT_LE(TimesOf(Make("ZB-V", 6, 2, 7), {1, 1, 1}).total, 50);
  EXPECT_LE(TimesOf(Make("ZB-V", 8, 2, 9), {1, 1, 1}).total, 66);
  EXPECT_LE(TimesOf(Make("ZB-V", 8, 2, 10), {1, 1, 1}).total, 70);
}

TEST(Simulate, AStageOfOneForwardOneBackwardHoldsAsManyActivationsAsStagesFollow) {
  for (const ScheduleShape& shape : Shapes("1F1B", 8, 12)) {
    StageCosts stage;
    stage.activation_bytes = 3;
    const Timeline timeline = TimesOf(Make("1F1B", shape), stage);
    for (int rank = 0; rank < shape.num_ranks; ++rank) {
      EXPECT_EQ(timeline.peak_activation_bytes[rank], 3.0 * std::min(shape.num_microbatches, shape.num_ranks - rank));
    }
  }
}

TEST(Simulate, ActivationsAreHeldUntilTheWeightGradient) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 5, 9)) {
      const Schedule schedule = Make(name, shape);
      const std::vector<int> held = MaxInFlight(schedule);
      EXPECT_EQ(TimesOf(schedule, StageCosts()).peak_activation_bytes, std::vector<double>(held.begin(), held.end()))
          << Describe(name, shape);
    }
  }
}

TEST(Simulate, PeakActivationsCountEachStagesOwnBytes) {
  const Schedule schedule = Make("ZB-V", 2, 2, 8);
  Costs costs = EqualCosts(schedule, StageCosts());
  EXPECT_EQ(Simulate(schedule, costs).peak_activation_bytes, (std::vector<double>{4, 4}));
  for (StageCosts& stage : costs.stages) stage.activation_bytes = 0;
  costs.stages[3].activation_bytes = 10;  // on rank 0
  const std::vector<double> peak = Simulate(schedule, costs).peak_activation_bytes;
  EXPECT_GE(peak[0], 10);
  EXPECT_EQ(peak[1], 0);
}

TEST(Simulate, EachStageTakesItsOwnTime) {
  const Schedule schedule = Make("1F1B", 2, 1, 1);
  Costs costs;
  costs.stages = {{.forward_seconds = 1, .input_gradient_seconds = 2, .weight_gradient_seconds = 3},
                  {.forward_seconds = 10, .input_gradient_seconds = 20, .weight_gradient_seconds = 30}};
  const Timeline timeline = Simulate(schedule, costs);
  ASSERT_EQ(timeline.actions.size(), 4u);
  EXPECT_EQ(timeline.actions[1].action, (Action{ActionKind::kBackward, 0, 0}));
  EXPECT_EQ(timeline.actions[1].begin, 1 + 10 + 20 + 30);
  EXPECT_EQ(timeline.actions[1].end, timeline.total);
  EXPECT_EQ(timeline.total, 66);
  EXPECT_EQ(timeline.busy, (std::vector<double>{6, 60}));
  EXPECT_NEAR(timeline.bubble(), 0.5, kRounding);
}

TEST(Simulate, AnInputGradientIsSentBeforeItsWeightGradientIsMade) {
  const absl::StatusOr<Schedule> split = ParseCsv("0F0,0B0\n1F0,1I0,1W0\n");
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(TimesOf(*split, {1, 1, 1}).total, 5);
  EXPECT_EQ(TimesOf(Make("1F1B", 2, 1, 1), {1, 1, 1}).total, 6);
}

TEST(Simulate, TransfersDelayTheReceiverAndDoNotHoldUpTheSender) {
  // One microbatch crosses each of the boundaries forward and back.
  for (int num_ranks : {1, 2, 5}) {
    const Schedule schedule = Make("1F1B", num_ranks, 1, 1);
    Costs costs = EqualCosts(schedule, {1, 1, 1});
    costs.transfer_seconds = 0.25;
    EXPECT_NEAR(Simulate(schedule, costs).total, 3 * num_ranks + 2 * (num_ranks - 1) * 0.25, kRounding);
  }
  // The two stages in the middle of a V are on one rank.
  const Schedule schedule = Make("ZB-V", 2, 2, 1);
  Costs costs = EqualCosts(schedule, {1, 1, 0});
  costs.transfer_seconds = 10;
  EXPECT_NEAR(Simulate(schedule, costs).total, 4 + 4 + 4 * 10, kRounding);
  // All of GPipe's forwards leave rank 0 without a wait.
  const Schedule gpipe = Make("GPipe", 2, 1, 4);
  costs = EqualCosts(gpipe, {1, 1, 1});
  costs.transfer_seconds = 100;
  EXPECT_EQ(Simulate(gpipe, costs).actions[3].end, 4);
}

TEST(Simulate, KeepsTheOrderOfTheRowsAndWhatActionsNeed) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 4, 6)) {
      const Schedule schedule = Make(name, shape);
      Costs costs;
      for (int s = 0; s < schedule.num_stages(); ++s) costs.stages.push_back({1.0 + s % 3, 2.0 + s % 2, 0.5});
      costs.transfer_seconds = 0.3;
      const Timeline timeline = Simulate(schedule, costs);
      std::vector<std::vector<Action>> rows(shape.num_ranks);
      for (const TimedAction& timed : timeline.actions) rows[timed.rank].push_back(timed.action);
      EXPECT_EQ(rows, schedule.ranks) << Describe(name, shape);
      for (const TimedAction& later : timeline.actions) {
        if (later.action.kind != ActionKind::kForward || later.action.stage == 0) continue;
        const Action before = {ActionKind::kForward, later.action.stage - 1, later.action.microbatch};
        const auto earlier = std::find_if(timeline.actions.begin(), timeline.actions.end(),
                                          [&](const TimedAction& timed) { return timed.action == before; });
        ASSERT_NE(earlier, timeline.actions.end());
        EXPECT_GE(later.begin, earlier->end + (earlier->rank == later.rank ? 0 : 0.3)) << Describe(name, shape);
      }
    }
  }
}

}  // namespace
}  // namespace trireme
