// The ranks are processes that share a folder; what they communicate is only written into their logs.
#include "parallel/comm/watchdog.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/log.h"

namespace {
bool links_are_supported = true;
}  // namespace

// In place of libc's.
extern "C" int link(const char* from, const char* to) noexcept {
  if (links_are_supported) return ::linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
  errno = EPERM;
  return -1;
}

namespace trireme {
namespace {

struct Outcome {
  std::vector<int> exit_codes;  // -signal when killed
  std::string output;           // stderr of all ranks
};

constexpr int kUnharmed = 42;

class WatchdogTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "watchdog_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
    options_.directory = folder_ + "/watchdog";
    options_.run_id = "start-1";
    options_.seconds = 0.5;
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  // Each body is one rank under a watchdog; then the rank stays silent for 10 s. One that outlives its body by that
  // leaves with kUnharmed.
  Outcome Run(const std::vector<std::function<void(OperationLog&)>>& bodies) {
    std::vector<pid_t> children;
    options_.world_size = static_cast<int>(bodies.size());
    for (size_t rank = 0; rank < bodies.size(); ++rank) {
      const pid_t child = fork();
      if (child == 0) {
        (void)freopen((folder_ + "/stderr").c_str(), "a", stderr);
        options_.rank = static_cast<int>(rank);
        SetLogRank(options_.rank, options_.world_size);
        OperationLog log;
        {
          Watchdog watchdog(&log, options_);
          bodies[rank](log);
        }
        _exit(kUnharmed);
      }
      children.push_back(child);
    }
    Outcome outcome;
    for (pid_t child : children) {
      int status = 0;
      waitpid(child, &status, 0);
      outcome.exit_codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    outcome.output = ReadFile(folder_ + "/stderr").value_or("");
    return outcome;
  }

  std::string folder_;
  Watchdog::Options options_;
};

void Enter(OperationLog& log, const std::string& group, const std::string& operation, int64_t bytes, int times) {
  for (int i = 1; i < times; ++i) log.Finish(log.Start(group, "all_gather", 64, 32));
  log.Start(group, operation, bytes, bytes / 2);
}

void EnterAndStay(OperationLog& log, const std::string& group, const std::string& operation, int64_t bytes, int times) {
  Enter(log, group, operation, bytes, times);
  sleep(10);
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST_F(WatchdogTest, NamesTheRankThatNeverCameAndThoseThatWait) {
  const auto waits = [](OperationLog& log) {
    log.Beat("step 12");
    EnterAndStay(log, "data_shard", "all_gather", 4096, 17);
  };
  const Outcome outcome = Run({waits,
                               [](OperationLog& log) {
                                 for (int i = 0; i < 16; ++i) log.Finish(log.Start("data_shard", "all_gather", 64, 32));
                                 log.Beat("step 12");
                                 sleep(10);
                               },
                               waits});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{8, 8, 8}));
  EXPECT_EQ(Count(outcome.output, "hang: "), 1) << outcome.output;
  EXPECT_NE(outcome.output.find("rank 1 never entered all_gather #17 of group data_shard (it has been silent for "),
            std::string::npos)
      << outcome.output;
  EXPECT_NE(outcome.output.find(" in step 12); ranks 0, 2 wait there"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("in no communication: rank 1"), std::string::npos) << outcome.output;
}

TEST_F(WatchdogTest, TellsDifferentCollectivesInTheSamePlace) {
  const Outcome outcome = Run({[](OperationLog& log) { EnterAndStay(log, "world", "all_gather", 4096, 3); },
                               [](OperationLog& log) { EnterAndStay(log, "world", "all_reduce", 8192, 3); }});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{8, 8}));
  EXPECT_NE(outcome.output.find("ranks called different collectives as #3 of group world: rank 0: all_gather of 4096 "
                                "B; rank 1: all_reduce of 8192 B"),
            std::string::npos)
      << outcome.output;
}

TEST_F(WatchdogTest, StoppedProcessDoesNotAnswer) {
  const Outcome outcome = Run({[](OperationLog& log) { EnterAndStay(log, "world", "all_reduce", 8, 2); },
                               [](OperationLog& log) { raise(SIGKILL); }});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{8, -SIGKILL}));
  EXPECT_NE(outcome.output.find("rank 1 does not answer"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("rank 0 waits in all_reduce #2 of group world"), std::string::npos) << outcome.output;
}

TEST_F(WatchdogTest, LeavesAJobAloneInWhichSomeRankMoves) {
  const Outcome outcome = Run({[](OperationLog& log) {
                                 log.Start("world", "barrier", 0, 0);
                                 usleep(2'000'000);
                               },
                               [](OperationLog& log) {
                                 for (int i = 0; i < 20; ++i) {
                                   log.Beat("saving");
                                   usleep(100'000);
                                 }
                               }});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{kUnharmed, kUnharmed})) << outcome.output;
}

TEST_F(WatchdogTest, LeavesABusyJobAlone) {
  const auto busy = [](OperationLog& log) {
    for (int i = 0; i < 20; ++i) {
      log.Finish(log.Start("world", "all_reduce", 8, 8));
      usleep(50'000);
    }
  };
  EXPECT_EQ(Run({busy, busy}).exit_codes, (std::vector<int>{kUnharmed, kUnharmed}));
}

TEST_F(WatchdogTest, FilesOfEarlierStartsAreIgnored) {
  ASSERT_TRUE(MakeDirectories(options_.directory).ok());
  OperationLog log;
  ASSERT_TRUE(WriteFileAtomically(options_.directory + "/start-0.rank-1.json",
                                  ToJson(MakeRankReport(1, "host", "rank 0 alarm 1", log)))
                  .ok());
  ASSERT_TRUE(WriteFileAtomically(options_.directory + "/start-0.claim", "").ok());
  ASSERT_TRUE(WriteFileAtomically(options_.directory + "/start-0.alarm", "rank 0 alarm 1").ok());
  const auto silent = [](OperationLog& log) {
    log.Beat("loading");
    sleep(10);
  };
  const Outcome outcome = Run({silent, silent});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{8, 8}));
  EXPECT_NE(outcome.output.find(
                "no rank waits for another; all are silent in their own work: rank 0 in loading, rank 1 in loading"),
            std::string::npos)
      << outcome.output;
}

TEST_F(WatchdogTest, WithoutAFolderEachRankEndsForItself) {
  options_.directory = "/dev/null/none";
  const Outcome outcome = Run({[](OperationLog& log) { EnterAndStay(log, "world", "all_reduce", 8, 2); }});
  EXPECT_EQ(outcome.exit_codes, std::vector<int>{8});
  EXPECT_NE(outcome.output.find("all_reduce #2 of group world"), std::string::npos) << outcome.output;
}

TEST_F(WatchdogTest, AfterAStopARankWhosePeerIsGoneLeaves) {
  options_.seconds = 60;
  options_.stop_wait_seconds = 0.3;
  options_.stop_requested = [] { return true; };
  const Outcome outcome = Run({[](OperationLog& log) { EnterAndStay(log, "world", "all_reduce", 8, 2); },
                               [](OperationLog& log) { raise(SIGKILL); }});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{9, -SIGKILL}));
  EXPECT_NE(outcome.output.find("rank 1 does not answer"), std::string::npos) << outcome.output;
}

TEST_F(WatchdogTest, AfterAStopASlowPeerIsWaitedFor) {
  options_.seconds = 60;
  options_.stop_wait_seconds = 0.3;
  options_.stop_requested = [] { return true; };
  const Outcome outcome = Run({[](OperationLog& log) {
                                 log.Start("world", "barrier", 0, 0);
                                 sleep(5);
                               },
                               [](OperationLog& log) {
                                 log.Beat("saving step 3");
                                 sleep(6);
                               }});
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{kUnharmed, kUnharmed})) << outcome.output;
}

TEST_F(WatchdogTest, WhereAFolderHasNoLinksRanksStillHearOfEachOther) {
  links_are_supported = false;
  const auto waits = [](OperationLog& log) { EnterAndStay(log, "world", "all_reduce", 8, 2); };
  const Outcome outcome = Run({waits,
                               [](OperationLog& log) {
                                 log.Beat("step 12");
                                 sleep(10);
                               },
                               waits});
  links_are_supported = true;
  EXPECT_EQ(outcome.exit_codes, (std::vector<int>{8, 8, 8}));
  EXPECT_EQ(Count(outcome.output, "hang: "), 1) << outcome.output;
  EXPECT_EQ(outcome.output.find("answer"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("ranks 0, 2 wait in all_reduce #2 of group world"), std::string::npos)
      << outcome.output;
}

TEST_F(WatchdogTest, ZeroSecondsMeansNoWatch) {
  OperationLog log;
  options_.seconds = 0;
  { Watchdog watchdog(&log, options_); }
  EXPECT_FALSE(std::filesystem::exists(options_.directory));
}

}  // namespace
}  // namespace trireme
