#include "parallel/comm/hang_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

RankReport Idle(int rank, const std::string& phase, std::map<std::string, int64_t> entered) {
  RankReport report;
  report.rank = rank;
  report.phase = phase;
  report.silent_seconds = 10;
  report.entered = std::move(entered);
  return report;
}

RankReport Waiting(int rank, const std::string& group, const std::string& operation, int64_t sequence, int64_t bytes,
                   std::vector<int> members = {}) {
  RankReport report = Idle(rank, "step 1", {{group, sequence}});
  report.blocking = {{group, operation, sequence, bytes, 9}};
  if (!members.empty()) report.members[group] = std::move(members);
  return report;
}

TEST(Verdict, NamesTheAbsentRankAndTheWaitingOnes) {
  EXPECT_EQ(Verdict({{0, Waiting(0, "data_shard", "all_gather", 17, 64)},
                     {1, Idle(1, "step 12", {{"data_shard", 16}})},
                     {2, Waiting(2, "data_shard", "all_gather", 17, 64)}},
                    3),
            "rank 1 never entered all_gather #17 of group data_shard (it has been silent for 10.0 s in step 12); ranks "
            "0, 2 wait there");
}

TEST(Verdict, BlamesOnlyMembersOfTheGroup) {
  const std::map<int, RankReport> reports = {{0, Waiting(0, "tensor", "all_reduce", 5, 64, {0, 1})},
                                             {1, Idle(1, "step 2", {{"tensor", 4}})},
                                             {2, Idle(2, "step 2", {{"tensor", 4}})}};
  EXPECT_EQ(Verdict(reports, 3),
            "rank 1 never entered all_reduce #5 of group tensor (it has been silent for 10.0 s in step 2); rank 0 "
            "waits there; "
            "rank 2 is in no communication (it has been silent for 10.0 s in step 2)");
}

TEST(Verdict, GroupsOfTheSameNameButOtherRanksDoNotConflict) {
  const std::map<int, RankReport> reports = {{0, Waiting(0, "tensor", "all_reduce", 5, 64, {0, 1})},
                                             {1, Waiting(1, "tensor", "all_reduce", 5, 64, {0, 1})},
                                             {2, Waiting(2, "tensor", "all_gather", 5, 32, {2, 3})},
                                             {3, Waiting(3, "tensor", "all_gather", 5, 32, {2, 3})}};
  EXPECT_EQ(Verdict(reports, 4).find("ranks wait for each other in different collectives: "), 0u)
      << Verdict(reports, 4);
}

TEST(Verdict, ExchangesMayDifferInSize) {
  EXPECT_EQ(Verdict({{0, Waiting(0, "pipeline", "exchange", 5, 64)}, {1, Waiting(1, "pipeline", "exchange", 5, 32)}}, 2)
                .find("all ranks entered the same operation but it does not end"),
            0u);
}

TEST(Verdict, SizesThatDifferAreDifferentCalls) {
  EXPECT_EQ(Verdict({{0, Waiting(0, "world", "all_gather", 5, 64)}, {1, Waiting(1, "world", "all_gather", 5, 32)}}, 2),
            "ranks called different collectives as #5 of group world: rank 1: all_gather of 32 B; rank 0: all_gather "
            "of 64 B");
}

TEST(Verdict, RanksInDifferentPlacesWaitForEachOther) {
  EXPECT_EQ(Verdict({{0, Waiting(0, "a", "all_gather", 5, 64)}, {1, Waiting(1, "b", "all_gather", 2, 64)}}, 2),
            "ranks wait for each other in different collectives: rank 0 waits in all_gather #5 of group a (64 B); "
            "rank 1 waits in all_gather #2 of group b (64 B)");
}

TEST(RankReport, SurvivesItsFile) {
  OperationLog log;
  log.Beat("step \"7\"");
  log.SetMembers("world", {0, 3});
  log.Finish(log.Start("world", "all_reduce", 8, 8));
  log.Start("world", "all_gather", 4096, 2048);
  const RankReport report = RankReportFromJson(ToJson(MakeRankReport(3, "host", "rank 0 alarm 2", log))).value();
  EXPECT_EQ(report.rank, 3);
  EXPECT_EQ(report.alarm, "rank 0 alarm 2");
  EXPECT_EQ(report.phase, "step \"7\"");
  ASSERT_EQ(report.blocking.size(), 1u);
  EXPECT_EQ(report.blocking[0].operation, "all_gather");
  EXPECT_EQ(report.blocking[0].sequence, 2);
  EXPECT_EQ(report.blocking[0].bytes, 4096);
  EXPECT_EQ(report.entered.at("world"), 2);
  EXPECT_EQ(report.members.at("world"), (std::vector<int>{0, 3}));
  for (const char* damaged : {"", "{", "[]", "{\"rank\": \"x\"}", "3"}) EXPECT_FALSE(RankReportFromJson(damaged).ok());
  // Every key is missed, and none may have another type.
  const nlohmann::json whole = nlohmann::json::parse(ToJson(report));
  for (const auto& [key, value] : whole.items()) {
    nlohmann::json changed = whole;
    changed.erase(key);
    EXPECT_FALSE(RankReportFromJson(changed.dump()).ok()) << key;
    changed[key] = {{"a", {"b"}}};
    EXPECT_FALSE(RankReportFromJson(changed.dump()).ok()) << key;
  }
}

TEST(OperationLog, TellsWaitingFromUnderWayWhereGroupsSaySo) {
  OperationLog log;
  const int64_t prefetch = log.Start("data_shard", "all_gather", 8, 8);
  log.Start("tensor", "all_reduce", 8, 8);
  EXPECT_EQ(log.Snapshot().blocking.size(), 2u);
  const int64_t waited = log.Start("data_shard", "reduce_scatter", 8, 8);
  log.Wait(waited);
  ASSERT_EQ(log.Snapshot().blocking.size(), 2u);
  EXPECT_EQ(log.Snapshot().blocking[0].operation, "all_reduce");
  EXPECT_EQ(log.Snapshot().blocking[1].operation, "reduce_scatter");
  EXPECT_NE(log.Describe(4).find("all_gather #1 on group data_shard, 8 B: under way"), std::string::npos)
      << log.Describe(4);
  log.Finish(prefetch);
  log.Finish(waited);
  EXPECT_EQ(log.Snapshot().blocking.size(), 1u);
}

TEST(RankNamesTest, RanksThatFollowEachOtherAreOneRun) {
  EXPECT_EQ(RankNames({3}), "rank 3");
  EXPECT_EQ(RankNames({0, 1}), "ranks 0, 1");
  EXPECT_EQ(RankNames({0, 2, 3, 4, 9}), "ranks 0, 2-4, 9");
  std::vector<int> scattered;
  for (int rank = 0; rank < 100; rank += 2) scattered.push_back(rank);
  EXPECT_EQ(RankNames(scattered), "ranks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30 and 34 more");
}

}  // namespace
}  // namespace trireme
