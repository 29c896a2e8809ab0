#include "launch/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <thread>
#include <vector>

namespace trireme {
namespace {

class Logging : public testing::Test {
 protected:
  ~Logging() override { SetLogRank(0, 1); }
};

TEST_F(Logging, OneRankPrintsPlainLines) {
  testing::internal::CaptureStderr();
  Info("loss ", 2.5);
  Warning("slow");
  ErrorLog("broken");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "loss 2.5\nwarning: slow\nerror: broken\n");
}

TEST_F(Logging, OfSeveralRanksTheFirstPrintsWarningsAndEachItsErrors) {
  SetLogRank(2, 4);
  testing::internal::CaptureStderr();
  Info("unseen");
  Warning("slow");
  ErrorLog("broken");
  SetLogRank(0, 4);
  Warning("slow");
  ErrorLog("broken");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "[rank 2] error: broken\nwarning: slow\n[rank 0] error: broken\n");
}

TEST_F(Logging, LinesOfSeveralThreadsStayWhole) {
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  for (char letter : {'a', 'b', 'c', 'd'}) {
    threads.emplace_back([letter] {
      for (int i = 0; i < 200; ++i) Info(std::string(50, letter));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = testing::internal::GetCapturedStderr();
  ASSERT_EQ(text.size(), 4 * 200 * 51u);
  for (size_t line = 0; line < text.size(); line += 51)
    ASSERT_EQ(text.substr(line, 51), std::string(50, text[line]) + "\n");
}

TEST_F(Logging, LiveLinesAreOnlyForTerminals) {
  testing::internal::CaptureStderr();
  ShowLiveLine("live");
  EXPECT_EQ(testing::internal::GetCapturedStderr().find("live") == std::string::npos, !HasTerminal());
}

TEST(Human, BytesCountsAndSeconds) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1'234'567), "1.2 MB");
  EXPECT_EQ(HumanBytes(2e18), "2000.0 PB");
  EXPECT_EQ(HumanCount(3400), "3.40k");
  EXPECT_EQ(HumanCount(7), "7");
  EXPECT_EQ(HumanSeconds(1.25), "1.2 s");
  EXPECT_EQ(HumanSeconds(62), "1 min 02 s");
  EXPECT_EQ(HumanSeconds(3725), "1 h 02 min");
  EXPECT_EQ(HumanSeconds(std::numeric_limits<double>::infinity()), "unknown");
}

TEST(Progress, EndsWithOneSummary) {
  testing::internal::CaptureStderr();
  {
    Progress progress("read", 1000, "tokens");
    progress.Update(1000);
    progress.Finish();
    progress.Finish();
  }
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("read: 1.00k tokens of 1.00k tokens (100 %), "), 0u) << text;
  EXPECT_NE(text.find(", took "), std::string::npos) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
}

}  // namespace
}  // namespace trireme
