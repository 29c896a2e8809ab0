#include "parallel/pipeline/validate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/lower.h"
#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

std::string Reason(const Schedule& schedule) {
  const absl::Status status = Validate(schedule);
  EXPECT_FALSE(status.ok());
  return std::string(status.message());
}

Schedule Table(const std::string& csv) {
  absl::StatusOr<Schedule> schedule = ParseCsv(csv);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return schedule.ok() ? *schedule : Schedule();
}

TEST(Validate, RefusesATableWithAnyActionRemovedDoubledOrChanged) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 3, 4)) {
      const Schedule schedule = Make(name, shape);
      for (int rank = 0; rank < shape.num_ranks; ++rank) {
        for (size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
          const auto changed = [&](auto change) {
            Schedule copy = schedule;
            change(copy.ranks[rank], copy.ranks[rank].begin() + static_cast<ptrdiff_t>(i));
            return Validate(copy);
          };
          const std::string place = absl::StrCat(Describe(name, shape), ", rank ", rank, ", action ", i);
          EXPECT_FALSE(changed([](auto& row, auto at) { row.erase(at); }).ok()) << place;
          EXPECT_FALSE(changed([](auto& row, auto at) { row.push_back(*at); }).ok()) << place;
          EXPECT_FALSE(changed([](auto&, auto at) { ++at->microbatch; }).ok()) << place;
          EXPECT_FALSE(changed([](auto&, auto at) { ++at->stage; }).ok()) << place;
          EXPECT_FALSE(changed([](auto&, auto at) {
                         at->kind = at->kind == ActionKind::kForward ? ActionKind::kBackward : ActionKind::kForward;
                       }).ok())
              << place;
        }
      }
    }
  }
}

// Whether all actions can run, by trying every rank again and again: what Validate() does with a queue.
bool CanFinish(const Schedule& schedule) {
  std::vector<std::vector<Action>> rows = schedule.ranks;
  std::vector<Action> done;
  const auto ran = [&](std::initializer_list<ActionKind> kinds, int stage, int microbatch) {
    return std::any_of(done.begin(), done.end(), [&](const Action& a) {
      return a.stage == stage && a.microbatch == microbatch && std::count(kinds.begin(), kinds.end(), a.kind) > 0;
    });
  };
  for (bool progress = true; progress;) {
    progress = false;
    for (auto& row : rows) {
      if (row.empty()) continue;
      const auto [kind, s, m] = row.front();
      const bool forward_before = ran({ActionKind::kForward}, kind == ActionKind::kForward ? s - 1 : s, m);
      const bool backward_after = ran({ActionKind::kBackward, ActionKind::kInputGradient}, s + 1, m);
      bool ready = false;
      if (kind == ActionKind::kForward) ready = s == 0 || forward_before;
      if (kind == ActionKind::kBackward || kind == ActionKind::kInputGradient) {
        ready = forward_before && (s + 1 == schedule.num_stages() || backward_after);
      }
      if (kind == ActionKind::kWeightGradient) ready = ran({ActionKind::kInputGradient}, s, m);
      if (!ready) continue;
      done.push_back(row.front());
      row.erase(row.begin());
      progress = true;
    }
  }
  return std::all_of(rows.begin(), rows.end(), [](const auto& row) { return row.empty(); });
}

TEST(Validate, AcceptsTwoActionsSwappedExactlyWhenTheRanksStillFinish) {
  int accepted = 0, refused = 0;
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 3, 4)) {
      const Schedule schedule = Make(name, shape);
      for (int rank = 0; rank < shape.num_ranks; ++rank) {
        for (size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
          for (size_t distance : {1, 2, 5}) {
            if (i + distance >= schedule.ranks[rank].size()) continue;
            Schedule swapped = schedule;
            std::swap(swapped.ranks[rank][i], swapped.ranks[rank][i + distance]);
            const bool ok = Validate(swapped).ok();
            EXPECT_EQ(ok, CanFinish(swapped)) << Describe(name, shape) << "\n" << PrintCsv(swapped);
            ++(ok ? accepted : refused);
          }
        }
      }
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 100);
}

TEST(Validate, ErrorsNameRankIndexAndAction) {
  EXPECT_TRUE(Says(Reason(Table("0F0,0B0,0F1,0B1,0F1\n")), "rank 0, action 4 (0F1): it runs twice"));
  EXPECT_TRUE(Says(Reason(Table("0F0,0B0,0B1,0F1\n")), "rank 0, action 2 (0B1): its forward has not run"));
  EXPECT_TRUE(Says(Reason(Table("0F0,0W0,0I0\n")), "rank 0, action 1 (0W0): its input gradient has not run"));
  EXPECT_TRUE(Says(Reason(Table("0F0,0B0,0W0\n")), "rank 0, action 2 (0W0): the weight gradient has run"));
  EXPECT_TRUE(Says(Reason(Table("0F0,0F1,0I0,0W0,0I1\n")), "never runs stage 0's weight gradient (W) of microbatch 1"));
  EXPECT_TRUE(Says(Reason(Table("0F0,0F1,0B0\n")), "never runs stage 0's backward (B, or I and W) of microbatch 1"));

  Schedule wrong_rank = Make("1F1B", 2, 1, 2);
  std::swap(wrong_rank.rank_of_stage[0], wrong_rank.rank_of_stage[1]);
  EXPECT_TRUE(Says(Reason(wrong_rank), "rank 0, action 0 (0F0): stage 0 is on rank 1"));
}

TEST(Validate, ADeadlockNamesWhereEachRankIsStuck) {
  const std::string reason = Reason(Table("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n"));
  EXPECT_TRUE(Says(reason, "rank 0, action 1 (0B0) waits for the backward of microbatch 0 on stage 1 (rank 1)"));
  EXPECT_TRUE(Says(reason, "rank 1, action 0 (1F1) waits for the forward of microbatch 1 on stage 0 (rank 0)"));
}

TEST(Validate, BoundsTheActivationsThatARankHolds) {
  const Schedule schedule = Make("1F1B", 4, 1, 8);
  EXPECT_TRUE(Validate(schedule, 4).ok());
  const absl::Status status = Validate(schedule, 3);
  ASSERT_FALSE(status.ok());
  EXPECT_TRUE(Says(std::string(status.message()), "rank 0, action 3 (0F3)"));
}

TEST(Validate, AcceptsAFullBackwardAndASplitOneInOneTable) {
  EXPECT_TRUE(Validate(Table("0F0,0F1,0B0,0I1,0W1\n1F0,1I0,1W0,1F1,1B1\n")).ok());
}

TEST(Validate, PassesOverWhatLoweringAdds) {
  const Schedule schedule = Make("ZB-V", 3, 2, 5);
  EXPECT_TRUE(Validate(Lower(schedule, {.reshard = true, .reduce_every_microbatch = true})).ok());
}

TEST(Validate, RefusesShapesThatCannotBe) {
  EXPECT_FALSE(Validate(Schedule()).ok());
  Schedule huge = Make("1F1B", 2, 1, 2);
  huge.num_microbatches = 2147483647;
  EXPECT_TRUE(Says(Reason(huge), "actions cannot run"));
  Schedule nowhere = Make("1F1B", 2, 1, 2);
  nowhere.rank_of_stage[1] = 2;
  EXPECT_TRUE(Says(Reason(nowhere), "stage 1 is on rank 2 of 2"));
}

}  // namespace
}  // namespace trireme
