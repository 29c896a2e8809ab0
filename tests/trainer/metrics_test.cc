#include "trainer/observe/metrics.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/base/file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

class Metrics : public testing::Test {
 protected:
  void SetUp() override {
    run_dir_ = testing::TempDir() + "metrics_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(run_dir_).ok());
    description_.config = "seed: 1\n";
    description_.version = "9.9";
    description_.ranks = 4;
    description_.mesh = "data_shard=4";
    description_.parameters = 123;
    description_.total_steps = 10;
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(run_dir_).ok()); }

  std::unique_ptr<MetricsLog> Open(int64_t resume_step, bool tensorboard = false) {
    auto log = MetricsLog::Open(run_dir_, tensorboard, description_, resume_step);
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? *std::move(log) : nullptr;
  }

  // The file's lines, each a JSON object; a last line without newline fails.
  std::vector<Json> Lines(const std::string& name = "metrics.jsonl") {
    const std::string text = ReadFile(run_dir_ + "/" + name).value_or("");
    EXPECT_TRUE(text.ends_with('\n'));
    std::vector<Json> lines;
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      lines.push_back(Json::parse(text.substr(begin, end - begin)));
    }
    return lines;
  }

  // "run train:1 eval:2 ..." in file order.
  std::string Outline() {
    std::string outline;
    for (const Json& line : Lines()) {
      outline += (outline.empty() ? "" : " ") + line["type"].get<std::string>();
      if (line.contains("step")) outline += ":" + line["step"].dump();
    }
    return outline;
  }

  static TrainRecord Record(int64_t step) {
    TrainRecord record;
    record.step = step;
    record.loss = 4.12345678901234;
    record.grad_norm = 1.5;
    record.learning_rate = 6e-4;
    record.tokens = step * 1000;
    record.tokens_per_second = 12345;
    record.step_ms = 132;
    record.data_wait_ms = 0.132;
    record.peak_memory_bytes = 512'000'000;
    record.eta_seconds = 190;
    return record;
  }

  std::string run_dir_;
  RunDescription description_;
};

TEST_F(Metrics, FirstLineDescribesTheRun) {
  Open(0);
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["type"], "run");
  EXPECT_EQ(lines[0]["config"], "seed: 1\n");
  EXPECT_EQ(lines[0]["ranks"], 4);
  EXPECT_EQ(lines[0]["mesh"], "data_shard=4");
  EXPECT_EQ(lines[0]["parameters"], 123);
}

TEST_F(Metrics, LinesHoldWhatWasRecorded) {
  auto log = Open(0);
  TrainRecord record = Record(3);
  record.mfu = 0.5;
  record.z_loss = 0.25;
  ASSERT_TRUE(log->Train(record).ok());
  ASSERT_TRUE(log->Train(Record(4)).ok());
  ASSERT_TRUE(log->Evaluation(4, 3.5).ok());
  ASSERT_TRUE(log->Flush().ok());
  const std::vector<Json> lines = Lines();
  EXPECT_EQ(lines[1], (Json{{"type", "train"},
                            {"step", 3},
                            {"loss", 4.12345678901234},
                            {"z_loss", 0.25},
                            {"grad_norm", 1.5},
                            {"learning_rate", 6e-4},
                            {"tokens", 3000},
                            {"tokens_per_second", 12345.0},
                            {"step_ms", 132.0},
                            {"data_wait_ms", 0.132},
                            {"peak_memory_bytes", 512'000'000},
                            {"mfu", 0.5},
                            {"eta_seconds", 190.0}}));
  EXPECT_FALSE(lines[2].contains("mfu"));
  EXPECT_FALSE(lines[2].contains("z_loss"));
  EXPECT_EQ(lines[3], (Json{{"type", "eval"}, {"step", 4}, {"eval_loss", 3.5}}));
}

TEST_F(Metrics, LoadsOfExpertsStandByLayer) {
  TrainRecord record = {.step = 3};
  record.routers = RouterResults{{{"model.layers.1", 1.5, 0.7, 0.25}, {"model.layers.2", 2.5, 0.6, 0.5}}, 0.01, 0.002};
  ASSERT_TRUE(Open(0)->Train(record).ok());
  const Json line = Lines()[1];
  EXPECT_EQ(line["router_aux_loss"], 0.01);
  EXPECT_EQ(line["router_z_loss"], 0.002);
  EXPECT_EQ(line["expert_load"]["model.layers.1"], Json({{"max_over_mean", 1.5}, {"entropy", 0.7}, {"idle", 0.25}}));
  EXPECT_EQ(line["expert_load"]["model.layers.2"]["max_over_mean"], 2.5);
  EXPECT_NE(ConsoleLine(record, 10).find(" load 2.50 "), std::string::npos) << "the worst layer's";
}

TEST_F(Metrics, NonFiniteNumbersStayValidJson) {
  auto log = Open(0);
  TrainRecord record = Record(1);
  record.loss = std::nan("");
  record.grad_norm = std::numeric_limits<double>::infinity();
  record.eta_seconds = -std::numeric_limits<double>::infinity();
  ASSERT_TRUE(log->Train(record).ok());
  EXPECT_EQ(Lines()[1]["loss"], "NaN");
  EXPECT_EQ(Lines()[1]["grad_norm"], "Infinity");
  EXPECT_EQ(Lines()[1]["eta_seconds"], "-Infinity");
}

TEST_F(Metrics, ResumedFileReadsAsOneRun) {
  {
    auto log = Open(0);
    for (int step = 1; step <= 6; ++step) ASSERT_TRUE(log->Train(Record(step)).ok());
    ASSERT_TRUE(log->Evaluation(4, 3).ok());
    ASSERT_TRUE(log->Evaluation(6, 3).ok());
  }
  std::ofstream(run_dir_ + "/metrics.jsonl", std::ios::app)
      << "{\"type\":\"train\",\"step\":4,\"lo";  // torn by a crash
  auto log = Open(4);
  EXPECT_EQ(Outline(), "run train:1 train:2 train:3 train:4 eval:4 resume:4");
  ASSERT_TRUE(log->Train(Record(5)).ok());
  log = Open(3);
  EXPECT_EQ(Outline(), "run train:1 train:2 train:3 resume:3");
}

TEST_F(Metrics, ResumeWithoutAnEarlierFileStillDescribesTheRun) {
  Open(4);
  EXPECT_EQ(Outline(), "run resume:4");
}

TEST_F(Metrics, DamagedLinesAreLeftOutOnResume) {
  { ASSERT_TRUE(Open(0)->Train(Record(1)).ok()); }
  std::ofstream(run_dir_ + "/metrics.jsonl", std::ios::app) << "rubbish\n[1]\n{\"type\":\"train\",\"step\":2}\n";
  Open(2);
  EXPECT_EQ(Outline(), "run train:1 train:2 resume:2");
}

TEST_F(Metrics, FreshRunSetsAnEarlierFileAside) {
  { ASSERT_TRUE(Open(0)->Train(Record(1)).ok()); }
  Open(0);
  EXPECT_EQ(Outline(), "run");
  EXPECT_EQ(Lines("metrics.previous.jsonl").size(), 2u);
}

TEST_F(Metrics, EveryLineIsWholeAfterKill) {
  const pid_t child = fork();
  if (child == 0) {
    auto log = MetricsLog::Open(run_dir_, true, description_, 0);
    for (int64_t step = 1;; ++step) (void)(*log)->Train(Record(step));
  }
  usleep(300'000);
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_GT(Lines().size(), 10u);
}

TEST_F(Metrics, FullDiskIsAStorageErrorAndLeavesWholeLines) {
  auto log = Open(0);
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &small);
  absl::Status status;
  for (int step = 1; step < 20 && status.ok(); ++step) status = log->Train(Record(step));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kStorage) << status;
  EXPECT_GT(Lines().size(), 2u);
}

TEST_F(Metrics, ConsoleShowsFirstLastAndEvaluationsButNotEveryStep) {
  auto log = Open(0);
  testing::internal::CaptureStderr();
  for (int step = 1; step <= 10; ++step) ASSERT_TRUE(log->Train(Record(step)).ok());
  ASSERT_TRUE(log->Evaluation(10, 2.5).ok());
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            ConsoleLine(Record(1), 10) + "\n" + ConsoleLine(Record(10), 10) + "\nstep 10/10 eval loss 2.5000\n");
}

TEST_F(Metrics, ConsoleLineIsReadable) {
  EXPECT_EQ(ConsoleLine(Record(120), 500),
            "step 120/500 loss 4.1235 grad 1.5 lr 6.00e-04 12.35k tok/s 132 ms data 0.1% mem 512.0 MB ETA 3 min 10 s");
  TrainRecord record = Record(1);
  record.mfu = 0.421;
  record.z_loss = 0.0123;
  record.step_ms = 8.25;
  EXPECT_EQ(ConsoleLine(record, 0),
            "step 1 loss 4.1235 z 0.0123 grad 1.5 lr 6.00e-04 12.35k tok/s 8.2 ms data 1.6% mem 512.0 MB mfu 42.1% ETA "
            "3 min 10 s");
}

TEST_F(Metrics, TensorBoardGetsAFilePerStart) {
  { ASSERT_TRUE(Open(0, true)->Train(Record(1)).ok()); }
  { ASSERT_TRUE(Open(1, true)->Evaluation(2, 1).ok()); }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir_ + "/tensorboard")) {
    EXPECT_EQ(entry.path().filename().string().find("events.out.tfevents."), 0u);
    ++files;
  }
  EXPECT_EQ(files, 2);
}

}  // namespace
}  // namespace trireme
