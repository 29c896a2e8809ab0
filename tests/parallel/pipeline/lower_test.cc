#include "parallel/pipeline/lower.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "parallel/pipeline/csv.h"
#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

std::string Lowered(const std::string& csv, const LowerOptions& options) {
  const absl::StatusOr<Schedule> schedule = ParseCsv(csv);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return schedule.ok() ? PrintCsv(Lower(*schedule, options)) : "";
}

constexpr LowerOptions kSharded = {.reshard = true, .reduce_every_microbatch = false};
constexpr LowerOptions kWhole = {.reshard = false, .reduce_every_microbatch = false};

TEST(Lower, GathersOneActionAheadOfNeed) {
  EXPECT_EQ(Lowered("0F0,0F1,1F0,1F1,1B0,1B1,0B0,0B1\n", kWhole),
            "0UNSHARD,0F0,1UNSHARD,0F1,1F0,1F1,1B0,1B1,1REDUCE_GRAD,0B0,0B1,0REDUCE_GRAD\n");
}

TEST(Lower, DropsParametersThatTheNextTwoActionsDoNotNeed) {
  EXPECT_EQ(Lowered("0F0,0F1,1F0,1F1,1B0,1B1,0B0,0B1\n", kSharded),
            "0UNSHARD,0F0,1UNSHARD,0F1,0RESHARD,1F0,1F1,1B0,0UNSHARD,1B1,1REDUCE_GRAD,1RESHARD,0B0,0B1,0REDUCE_GRAD,"
            "0RESHARD\n");
}

TEST(Lower, KeepsTheParametersOfStagesThatTakeTurns) {
  EXPECT_EQ(Lowered("0F0,1F0,0F1,1F1,1B0,0B0,1B1,0B1\n", kSharded),
            "0UNSHARD,1UNSHARD,0F0,1F0,0F1,0RESHARD,1F1,0UNSHARD,1B0,0B0,1B1,1REDUCE_GRAD,1RESHARD,0B1,0REDUCE_GRAD,"
            "0RESHARD\n");
}

TEST(Lower, AWeightGradientNeedsNoParameters) {
  EXPECT_EQ(Lowered("0F0,0I0,0W0,0F1,0I1,0W1\n", kSharded), "0UNSHARD,0F0,0I0,0W0,0F1,0I1,0RESHARD,0W1,0REDUCE_GRAD\n");
  EXPECT_EQ(Lowered("0F0,0F1,0I0,0I1,0W0,0W1\n", kSharded), "0UNSHARD,0F0,0F1,0I0,0I1,0RESHARD,0W0,0W1,0REDUCE_GRAD\n");
}

TEST(Lower, ReducesAfterEveryMicrobatchWhereAsked) {
  EXPECT_EQ(Lowered("0F0,0I0,0F1,0I1,0W0,0W1\n", {.reshard = false, .reduce_every_microbatch = true}),
            "0UNSHARD,0F0,0I0,0F1,0I1,0W0,0REDUCE_GRAD,0W1,0REDUCE_GRAD\n");
}

struct Row {
  std::string text;
  std::vector<Action> actions;
};

std::vector<Row> RowsOfAll(const LowerOptions& options) {
  std::vector<Row> rows;
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 5, 9)) {
      for (const std::vector<Action>& row : Lower(Make(name, shape), options).ranks) {
        rows.push_back({Describe(name, shape), row});
      }
    }
  }
  return rows;
}

TEST(Lower, LeavesTheComputeActionsAsTheyWere) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 4, 9)) {
      const Schedule schedule = Make(name, shape);
      Schedule lowered = Lower(schedule, {.reshard = true, .reduce_every_microbatch = true});
      for (auto& row : lowered.ranks) std::erase_if(row, [](const Action& a) { return !IsCompute(a.kind); });
      EXPECT_EQ(lowered.ranks, schedule.ranks) << Describe(name, shape);
    }
  }
}

TEST(Lower, ParametersAreGatheredBeforeTheActionBeforeTheirUse) {
  for (bool reshard : {false, true}) {
    for (const Row& row : RowsOfAll({.reshard = reshard, .reduce_every_microbatch = true})) {
      std::set<int> gathered, gathered_earlier;  // now, and before the last compute action
      int computed = 0;
      for (const Action& action : row.actions) {
        if (action.kind == ActionKind::kUnshard) {
          EXPECT_TRUE(gathered.insert(action.stage).second) << row.text;
        }
        if (action.kind == ActionKind::kReshard) {
          EXPECT_EQ(gathered.erase(action.stage), 1u) << row.text;
        }
        if (!IsCompute(action.kind)) continue;
        if (action.kind != ActionKind::kWeightGradient) {
          EXPECT_EQ((computed == 0 ? gathered : gathered_earlier).count(action.stage), 1u)
              << row.text << ": " << ToString(action);
        }
        EXPECT_LE(gathered.size(), reshard ? 2u : 4u) << row.text;
        gathered_earlier = gathered;
        ++computed;
      }
      EXPECT_EQ(gathered.empty(), reshard) << row.text;
    }
  }
}

TEST(Lower, NoParametersAreDroppedOnlyToBeGatheredAtOnce) {
  for (const Row& row : RowsOfAll({.reshard = true, .reduce_every_microbatch = false})) {
    std::set<int> dropped;
    for (const Action& action : row.actions) {
      if (IsCompute(action.kind)) dropped.clear();
      if (action.kind == ActionKind::kReshard) dropped.insert(action.stage);
      if (action.kind == ActionKind::kUnshard) {
        EXPECT_EQ(dropped.count(action.stage), 0u) << row.text;
      }
    }
  }
}

TEST(Lower, GradientsAreReducedOnceAndAfterTheLastOfThem) {
  for (const Row& row : RowsOfAll({.reshard = true, .reduce_every_microbatch = false})) {
    std::map<int, int> reduced;
    std::set<int> stages;
    for (const Action& action : row.actions) {
      stages.insert(action.stage);
      if (action.kind == ActionKind::kReduceGradients) ++reduced[action.stage];
      if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kWeightGradient) {
        EXPECT_EQ(reduced.count(action.stage), 0u) << row.text;
      }
    }
    EXPECT_EQ(reduced.size(), stages.size()) << row.text;
    for (const auto& [stage, times] : reduced) EXPECT_EQ(times, 1) << row.text;
  }
}

TEST(LinkOrder, IsTheOrderOfTheSender) {
  const Schedule schedule = Make("1F1B", 2, 1, 3);  // 0F0,0F1,0B0,0F2,0B1,0B2 and 1F0,1B0,1F1,1B1,1F2,1B2
  EXPECT_EQ(LinkOrder(schedule, 0, 1), (std::vector<Message>{{false, 1, 0}, {false, 1, 1}, {false, 1, 2}}));
  EXPECT_EQ(LinkOrder(schedule, 1, 0), (std::vector<Message>{{true, 0, 0}, {true, 0, 1}, {true, 0, 2}}));
}

TEST(LinkOrder, MixesActivationsAndGradientsWhereStagesComeRound) {
  const Schedule schedule = Make("Interleaved1F1B", 2, 2, 2);  // rank 1: 1F0,1F1,3F0,3B0,3F1,3B1,1B0,1B1
  EXPECT_EQ(
      LinkOrder(schedule, 1, 0),
      (std::vector<Message>{{false, 2, 0}, {false, 2, 1}, {true, 2, 0}, {true, 2, 1}, {true, 0, 0}, {true, 0, 1}}));
}

TEST(LinkOrder, StagesOnOneRankSendNothing) {
  const Schedule schedule = Make("ZB-V", 2, 2, 1);  // rank 1 has stages 1 and 2
  EXPECT_TRUE(LinkOrder(schedule, 1, 1).empty());
  EXPECT_EQ(LinkOrder(schedule, 1, 0), (std::vector<Message>{{false, 3, 0}, {true, 0, 0}}));
}

TEST(LinkOrder, EveryStageBoundaryBetweenRanksIsCrossedOnceForwardAndOnceBackwardPerMicrobatch) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 5, 9)) {
      const Schedule schedule = Make(name, shape);
      std::map<std::pair<bool, std::pair<int, int>>, int> times;
      for (int from = 0; from < shape.num_ranks; ++from) {
        for (int to = 0; to < shape.num_ranks; ++to) {
          for (const Message& m : LinkOrder(schedule, from, to)) {
            EXPECT_EQ(schedule.rank_of_stage[m.stage], to);
            EXPECT_EQ(schedule.rank_of_stage[m.gradient ? m.stage + 1 : m.stage - 1], from);
            EXPECT_EQ((++times[{m.gradient, {m.stage, m.microbatch}}]), 1) << Describe(name, shape);
          }
        }
      }
      size_t boundaries = 0;
      for (int s = 1; s < schedule.num_stages(); ++s) {
        boundaries += schedule.rank_of_stage[s] != schedule.rank_of_stage[s - 1] ? 1 : 0;
      }
      EXPECT_EQ(times.size(), 2 * boundaries * shape.num_microbatches) << Describe(name, shape);
    }
  }
}

// What a rank may post a receive for before it goes on: in 1F1B all it will be sent next.
TEST(RunBeforeArrival, CountsWhatTheSenderNeedsFromTheReceiver) {
  // Rank 0: 0F0 0F1 0B0 0B1; rank 1: 1F0 1B0 1F1 1B1. The first gradient needs 0F0 only, the second 0F1 too.
  const Schedule alternating = Make("1F1B", 2, 1, 2);
  EXPECT_EQ(RunBeforeArrival(alternating, 0, 1), (std::vector<size_t>{0, 0}));
  EXPECT_EQ(RunBeforeArrival(alternating, 1, 0), (std::vector<size_t>{1, 2}));
  // ZB-V, one microbatch: rank 1 sends the activation for stage 3 after 0F0, the gradient for stage 0 after 3F0 and
  // 3I0.
  EXPECT_EQ(RunBeforeArrival(Make("ZB-V", 2, 2, 1), 1, 0), (std::vector<size_t>{1, 3}));
}

// Nothing waits for an action that itself waits for the message: what a valid schedule is.
TEST(RunBeforeArrival, IsNeverMoreThanWhatRanWhenTheMessageIsNeeded) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 4, 6)) {
      const Schedule schedule = Make(name, shape);
      for (int from = 0; from < shape.num_ranks; ++from) {
        for (int to = 0; to < shape.num_ranks; ++to) {
          const std::vector<Message> messages = LinkOrder(schedule, from, to);
          const std::vector<size_t> before = RunBeforeArrival(schedule, from, to);
          ASSERT_EQ(before.size(), messages.size());
          const std::vector<Action>& row = schedule.ranks[to];
          for (size_t i = 0; i < messages.size(); ++i) {
            const auto use = std::find_if(row.begin(), row.end(), [&](const Action& action) {
              const bool gradient = action.kind == ActionKind::kBackward || action.kind == ActionKind::kInputGradient;
              const bool takes = messages[i].gradient ? gradient : action.kind == ActionKind::kForward;
              return takes && action.stage == messages[i].stage && action.microbatch == messages[i].microbatch;
            });
            EXPECT_LE(before[i], static_cast<size_t>(use - row.begin())) << Describe(name, shape);
            EXPECT_GE(before[i], before[i > 0 ? i - 1 : 0]) << Describe(name, shape);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme
