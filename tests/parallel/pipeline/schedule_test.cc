#include "parallel/pipeline/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/validate.h"
#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

TEST(MakeSchedule, IsValidForAnyNumberOfMicrobatches) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 8, 33)) {
      const Schedule schedule = Make(name, shape);
      ASSERT_TRUE(Validate(schedule).ok()) << Describe(name, shape) << ": " << Validate(schedule);
      ASSERT_EQ(schedule.num_ranks(), shape.num_ranks);
      ASSERT_EQ(schedule.num_stages(), shape.num_ranks * shape.stages_per_rank);
      ASSERT_EQ(schedule.num_microbatches, shape.num_microbatches);
    }
  }
}

TEST(MakeSchedule, TablesReadAsInThePapers) {
  EXPECT_EQ(PrintCsv(Make("GPipe", 1, 1, 2)), "0F0,0F1,0B0,0B1\n");
  EXPECT_EQ(PrintCsv(Make("1F1B", 1, 1, 2)), "0F0,0B0,0F1,0B1\n");
  EXPECT_EQ(PrintCsv(Make("1F1B", 2, 1, 3)), "0F0,0F1,0B0,0F2,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2\n");
  EXPECT_EQ(PrintCsv(Make("ZB-H1", 2, 1, 3)),
            "0F0,0F1,0I0,0W0,0F2,0I1,0W1,0I2,0W2\n1F0,1I0,1F1,1I1,1W0,1F2,1I2,1W1,1W2\n");
  EXPECT_EQ(PrintCsv(Make("Interleaved1F1B", 2, 2, 2)),
            "0F0,0F1,2F0,2F1,2B0,2B1,0B0,0B1\n1F0,1F1,3F0,3B0,3F1,3B1,1B0,1B1\n");
}

TEST(MakeSchedule, InterleavedDealsStagesRoundAndZeroBubbleVFoldsThem) {
  EXPECT_EQ(Make("Interleaved1F1B", 3, 2, 3).rank_of_stage, (std::vector<int>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(Make("ZB-V", 3, 2, 3).rank_of_stage, (std::vector<int>{0, 1, 2, 2, 1, 0}));
}

TEST(MakeSchedule, HoldsWhatTheHeaderSays) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 8, 33)) {
      const auto [num_ranks, stages_per_rank, num_microbatches] = shape;
      const int num_groups = std::max(1, num_microbatches / num_ranks);
      const int group = (num_microbatches + num_groups - 1) / num_groups;
      const std::vector<int> held = MaxInFlight(Make(name, shape));
      for (int rank = 0; rank < num_ranks; ++rank) {
        int bound = num_microbatches;
        if (name == "1F1B") bound = num_ranks - rank;
        if (name == "Interleaved1F1B") bound = (stages_per_rank - 1) * group + 2 * (num_ranks - rank) - 1;
        if (name == "ZB-H1") bound = num_ranks;
        if (name == "ZB-V") bound = 2 * num_ranks;
        bound = std::min(bound, stages_per_rank * num_microbatches);
        // ZB-V frees some before the bound binds; the others reach it.
        if (name == "ZB-V") {
          EXPECT_LE(held[rank], bound) << Describe(name, shape) << ", rank " << rank;
        } else {
          EXPECT_EQ(held[rank], bound) << Describe(name, shape) << ", rank " << rank;
        }
      }
    }
  }
}

TEST(MakeSchedule, ZeroBubbleH1HoldsFromForwardToInputGradientWhatOneForwardOneBackwardHolds) {
  for (const ScheduleShape& shape : Shapes("ZB-H1", 8, 20)) {
    const Schedule schedule = Make("ZB-H1", shape);
    const std::vector<int> bound = MaxInFlight(Make("1F1B", shape));
    for (int rank = 0; rank < shape.num_ranks; ++rank) {
      int held = 0, most = 0;
      for (const Action& action : schedule.ranks[rank]) {
        if (action.kind == ActionKind::kForward) most = std::max(most, ++held);
        if (action.kind == ActionKind::kInputGradient) --held;
      }
      EXPECT_EQ(most, bound[rank]) << Describe("ZB-H1", shape) << ", rank " << rank;
    }
  }
}

TEST(MakeSchedule, RefusesAnUnknownNameAndListsTheKnown) {
  const absl::Status status = MakeSchedule("1f1b", 2, 1, 4).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig);
  for (const std::string& name : ScheduleNames()) EXPECT_TRUE(Says(std::string(status.message()), name));
}

TEST(MakeSchedule, RefusesStagesPerRankThatTheScheduleCannotHave) {
  const auto message = [](const std::string& name, int stages_per_rank) {
    const absl::Status status = MakeSchedule(name, 2, stages_per_rank, 4).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig);
    return std::string(status.message());
  };
  EXPECT_TRUE(Says(message("GPipe", 2), "GPipe needs exactly 1 stages per rank, not 2"));
  EXPECT_TRUE(Says(message("1F1B", 2), "exactly 1"));
  EXPECT_TRUE(Says(message("ZB-H1", 3), "exactly 1"));
  EXPECT_TRUE(Says(message("ZB-V", 1), "exactly 2"));
  EXPECT_TRUE(Says(message("ZB-V", 3), "exactly 2"));
  EXPECT_TRUE(Says(message("Interleaved1F1B", 1), "at least 2"));
}

TEST(MakeSchedule, RefusesShapesThatAreEmptyOrDoNotFitInMemory) {
  for (const ScheduleShape& shape : {ScheduleShape{0, 1, 4},
                                     {2, 0, 4},
                                     {2, 1, 0},
                                     {2, 1, -1},
                                     {-3, 1, 4},
                                     {1 << 20, 1, 1},
                                     {1 << 13, 1, 1 << 20},
                                     {2, 1, 2147483647}}) {
    const auto status = MakeSchedule("1F1B", shape.num_ranks, shape.stages_per_rank, shape.num_microbatches).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig) << Describe("1F1B", shape);
  }
}

}  // namespace
}  // namespace trireme
