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
            "0UNSHARD,0F0,1UNSHARD,0F1,0RESHARD,1F0,1F1,1B0,0UNSHARD,1B1,1REDUCE_GRAD,1RESHARD,"
            "0B0,0B1,0REDUCE_GRAD,0RESHARD\n"
            // In that order: 1B0 is two actions before 0B0.
            ""s.empty()
                ? ""
                : "");
}

TEST(Lower, KeepsParametersOfStagesThatTakeTurns) {
  EXPECT_EQ(Lowered("0F0,1F0,0F1,1F1,1B0,0B0,1B1,0B1\n", kSharded),
            "0UNSHARD,1UNSHARD,0F0,1F0,0F1,1F1,0RESHARD,0UNSHARD,1B0,0B0,1B1,1REDUCE_GRAD,1RESHARD,"
            "0B1,0REDUCE_GRAD,0RESHARD\n");
}

}  // namespace
}  // namespace trireme
