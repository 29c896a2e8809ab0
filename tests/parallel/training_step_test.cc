// What a training step asks of the host, counted; and that results which nobody waited for decide as they should.
#include <gtest/gtest.h>

#include <limits>

#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

constexpr char kClipped[] =
    "optimizer { adamw { learning_rate: 0.01 } } lr_schedule { clip_grad_norm: 0.5 } micro_batch_size: 2";

// Meshes of this job's size on which ranks share what they can.
std::vector<std::string> StepLayouts() {
  const int ranks = TestProcess().size();
  std::vector<std::string> layouts = {"", "parallel { shard: GRADIENTS }"};
  if (ranks % 2 == 0) layouts.push_back("parallel { tensor: 2 }");
  if (ranks == 2) layouts.push_back("parallel { data_shard: 1 data_replicate: 2 }");
  if (ranks == 4) layouts.push_back("parallel { pipeline: 2 data_shard: 1 data_replicate: 2 }");
  return layouts;
}

int64_t Calls(const std::map<std::pair<std::string, std::string>, OperationCount>& counts, const std::string& group) {
  int64_t calls = 0;
  for (const auto& [key, count] : counts) calls += key.first == group ? count.calls : 0;
  return calls;
}

TEST(TrainingStep, UploadsOnceReadsNothingAndSendsNoControlMessage) {
  REQUIRE_RANKS(TestProcess().size() <= 4, "it is the same on more");
  for (const std::string& layout : StepLayouts()) {
    SCOPED_TRACE(layout);
    TinyRun run({kClipped, layout});
    run.Initialize();
    run.Issue();
    run.mesh().log().ResetCounts();
    const int64_t uploads = Transfers().uploads, reads = Transfers().host_reads;
    const PendingResults first = run.Issue(), second = run.Issue();
    EXPECT_EQ(Transfers().uploads - uploads, 2);
    EXPECT_EQ(Transfers().host_reads - reads, 0) << "the host waited before the second step was issued";
    const auto counts = run.mesh().log().counts();
    EXPECT_EQ(Calls(counts, "world"), 0);
    const bool alone = TestProcess().size() == 1;
    EXPECT_EQ(Calls(counts, "pipeline+data_replicate+data_shard+context+tensor"), alone ? 0 : 2);
    // The groups of counts and sums that the host would need.
    EXPECT_EQ(Calls(counts, "data_replicate+data_shard"), 0);
    EXPECT_EQ(Calls(counts, "pipeline+data_replicate+data_shard+context"), 0);
    EXPECT_TRUE(first.Wait().applied && second.Wait().applied);
    EXPECT_EQ(Transfers().host_reads - reads, 2);
  }
}

TEST(TrainingStep, ResultsReadLateAreThoseReadAtOnce) {
  REQUIRE_RANKS(TestProcess().size() <= 4, "it is the same on more");
  for (const std::string& layout : StepLayouts()) {
    SCOPED_TRACE(layout);
    TinyRun late({kClipped, layout, "loss { z_loss: 1e-3 }"}), at_once({kClipped, layout, "loss { z_loss: 1e-3 }"});
    late.Initialize();
    at_once.Initialize();
    std::vector<PendingResults> results;
    for (int step = 0; step < 3; ++step) results.push_back(late.Issue());
    for (int step = 0; step < 3; ++step) {
      const StepResults step_results = results[step].Wait();
      EXPECT_EQ(step_results.loss.mean, at_once.ForwardBackward(step + 1)) << step;
      EXPECT_GT(step_results.loss.z_loss, 0);
      EXPECT_EQ(step_results.norm.total, at_once.model().ClipGradNorm(0).total) << step;
      EXPECT_LT(step_results.norm.clip_factor, 1);
      EXPECT_EQ(step_results.updates, step + 1);
      at_once.Update();
    }
    EXPECT_EQ(late.Bytes(), at_once.Bytes());
  }
}

// One weight that is no number makes every loss and gradient so.
void Poison(TinyRun& run) {
  for (ParameterBuffer* buffer : run.model().buffers()) {
    if (buffer->own_weights().numel() > 0) buffer->own_weights().fill_(std::numeric_limits<double>::quiet_NaN());
    buffer->Publish(/*converted=*/false);
  }
}

TEST(TrainingStep, AStoppedRunKeepsItsWeightsUntilTheHostNotices) {
  REQUIRE_RANKS(TestProcess().size() <= 4, "it is the same on more");
  TinyRun run({kClipped});
  run.Initialize();
  EXPECT_TRUE(run.Issue().Wait().applied);
  Poison(run);
  const StepResults bad = run.Issue().Wait();
  EXPECT_FALSE(bad.finite || bad.applied);
  EXPECT_EQ(bad.updates, 1);
  EXPECT_NE(run.model().DescribeNonFinite(bad).find("rank 0: loss"), std::string::npos);
  run.Initialize();
  const auto before = run.Bytes();
  const StepResults after = run.Issue().Wait();
  EXPECT_TRUE(after.finite);
  EXPECT_FALSE(after.applied);
  EXPECT_EQ(run.Bytes(), before);
}

TEST(TrainingStep, ASkippedUpdateCountsForNothing) {
  REQUIRE_RANKS(TestProcess().size() <= 4, "it is the same on more");
  TinyRun run({kClipped, "non_finite { policy: SKIP_UPDATE max_consecutive_skips: 2 }"});
  run.Initialize();
  Poison(run);
  EXPECT_EQ(run.Issue().Wait().consecutive_skips, 1);
  run.Initialize();
  const StepResults good = run.Issue().Wait();
  EXPECT_TRUE(good.applied);
  EXPECT_EQ(good.consecutive_skips, 0);
  EXPECT_EQ(good.updates, 1);
}

}  // namespace
}  // namespace trireme
