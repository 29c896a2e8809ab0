#include "parallel/pipeline/csv.h"

#include <gtest/gtest.h>

#include "launch/base/file.h"
#include "parallel/pipeline/lower.h"
#include "parallel/pipeline/validate.h"
#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

std::string Reason(const absl::Status& status) {
  EXPECT_FALSE(status.ok());
  return std::string(status.message());
}

TEST(Csv, WhatIsPrintedIsReadBack) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : Shapes(name, 5, 12)) {
      const Schedule schedule = Make(name, shape);
      const absl::StatusOr<Schedule> read = ParseCsv(PrintCsv(schedule));
      ASSERT_TRUE(read.ok()) << Describe(name, shape) << ": " << read.status();
      EXPECT_EQ(read->ranks, schedule.ranks);
      EXPECT_EQ(read->rank_of_stage, schedule.rank_of_stage);
      EXPECT_EQ(read->num_microbatches, schedule.num_microbatches);
    }
  }
}

TEST(Csv, ReadsEmptyCellsSpacesAndTheLineEndsOfPythonsWriter) {
  const auto read = ParseCsv("0F0, 0F1 ,,0B0,0B1\r\n,1F0,1B0,1F1,1B1,\r\n\r\n");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(PrintCsv(*read), "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n");
}

TEST(Csv, LeavesOutWhatLoweringAndTheExecutorAdd) {
  const Schedule schedule = Make("ZB-V", 2, 2, 4);
  const auto lowered = ParseCsv(PrintCsv(Lower(schedule, {.reshard = true, .reduce_every_microbatch = false})));
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  EXPECT_EQ(lowered->ranks, schedule.ranks);

  const auto with_messages = ParseCsv(
      "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD,0RESHARD\n1UNSHARD,1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_GRAD\n");
  ASSERT_TRUE(with_messages.ok()) << with_messages.status();
  EXPECT_EQ(PrintCsv(*with_messages), "0F0,0B0\n1F0,1B0\n");
}

TEST(Csv, RunsAnOverlappedPairOneAfterTheOther) {
  const auto read = ParseCsv("0F0,(0F1;0B0)OVERLAP_F_B,0B1\n");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(PrintCsv(*read), "0F0,0F1,0B0,0B1\n");
}

TEST(Csv, ErrorsNameLineAndCell) {
  const std::string place = "line 2, cell 3 ";
  for (const char* cell :
       {"1X0", "F0", "1F", "1", "-1F0", "1F-1", "1F0x", "1F0 1B0", "1f0", "1F99999999999999999999", "99999999F0", "01F",
        "(1F1;1B0", "(1F1;1B0)", "(1F1;)OVERLAP_F_B", "1SEND_F", "1UNSHARD0", "1FB0", "\x01"}) {
    const std::string reason = Reason(ParseCsv("0F0,0B0\n1F0,1B0," + std::string(cell) + "\n").status());
    EXPECT_TRUE(Says(reason, place)) << cell;
  }
}

TEST(Csv, RefusesAStageOnTwoRanks) {
  EXPECT_TRUE(
      Says(Reason(ParseCsv("0F0,0B0\n1F0,0B0,1B0\n").status()), "line 2 (0B0): stage 0 already runs on rank 0"));
}

TEST(Csv, RefusesAStageWithoutARankAndARankWithoutAction) {
  EXPECT_TRUE(Says(Reason(ParseCsv("0F0,0B0\n2F0,2B0\n").status()), "no rank runs stage 1"));
  EXPECT_TRUE(Says(Reason(ParseCsv("0F0,0B0\n,,\n1F0,1B0\n").status()), "line 2"));
  EXPECT_TRUE(Says(Reason(ParseCsv("").status()), "no lines"));
}

TEST(Csv, AHugeNumberInASmallFileAllocatesNothing) {
  EXPECT_TRUE(Says(Reason(ParseCsv("0F0,0B0,0F16777000,16777000F1\n").status()), "4 actions cannot run"));
  EXPECT_TRUE(Says(Reason(ParseCsv(std::string(1 << 20, '\n') + "0F0").status()), "lines"));
}

class ScheduleFile : public ::testing::Test {
 protected:
  absl::StatusOr<Schedule> Read(const std::string& text, int num_ranks, int stages_per_rank, int num_microbatches) {
    const std::string path = ::testing::TempDir() + "/schedule_file_test.csv";
    EXPECT_TRUE(WriteFileAtomically(path, text).ok());
    return MakeSchedule(path, num_ranks, stages_per_rank, num_microbatches);
  }
};

TEST_F(ScheduleFile, IsAScheduleLikeAnyOther) {
  const Schedule schedule = Make("ZB-V", 4, 2, 6);
  const auto read = Read(PrintCsv(schedule), 4, 2, 6);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ranks, schedule.ranks);
  EXPECT_TRUE(Says(read->name, "schedule_file_test.csv"));
}

TEST_F(ScheduleFile, IsRefusedForAnotherRun) {
  const std::string text = PrintCsv(Make("Interleaved1F1B", 2, 2, 6));
  EXPECT_TRUE(Says(Reason(Read(text, 4, 1, 6).status()), "2 ranks and 6 microbatches, the run has 4"));
  EXPECT_TRUE(Says(Reason(Read(text, 2, 2, 8).status()), "the run has 2 and 8"));
  EXPECT_TRUE(Says(Reason(Read(text, 2, 3, 6).status()), "2 stages, the run has 3 per rank"));
}

TEST_F(ScheduleFile, IsValidated) {
  EXPECT_TRUE(Says(Reason(Read("0F0,0B0\n1B0,1F0\n", 2, 1, 1).status()), "rank 1, action 0 (1B0)"));
  EXPECT_TRUE(Says(Reason(MakeSchedule("no/such/file.csv", 2, 1, 4).status()), "no/such/file.csv"));
}

}  // namespace
}  // namespace trireme
