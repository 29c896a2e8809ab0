// Checkpoints across layouts: what two ranks saved, one and four ranks load, bit for bit; and a run that was stopped
// goes on as if it had not been.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "launch/base/file.h"
#include "models/weights/checkpoint_list.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/mpi_group.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/shared_folder.h"
#include "tests/parallel/tiny_run.h"
#include "trainer/loop/checkpointer.h"

namespace trireme {
namespace {

// A tied model with documents under AdamW and clipping, saved under `run_dir`.
std::vector<std::string> TiedRun(const std::string& run_dir, const std::string& parallel) {
  return {absl::StrCat(
              "model { tie_word_embeddings: true } data { document_mask: true } "
              "optimizer { adamw { learning_rate: 3e-3 eps: 1e-6 } } lr_schedule { clip_grad_norm: 1 } run_dir: \"",
              run_dir, "\""),
          absl::StrCat("parallel { ", parallel, " }")};
}

std::string Sharded(ShardLevel level, int replicas = 1) {
  return absl::StrCat("shard: ", ShardLevelName(level), " data_replicate: ", replicas);
}

TEST(Checkpoint, ResumingOnTheSameLayoutGivesTheSameBits) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  for (const ShardLevel level : {ShardLevel::kNone, ShardLevel::kGradients, ShardLevel::kParameters}) {
    for (const int replicas : {1, 2}) {
      if (TestProcess().size() % replicas != 0) continue;
      SCOPED_TRACE(absl::StrCat(ShardLevelName(level), " replicas=", replicas));
      const SharedFolder folder(*world);
      TinyRun through(TiedRun(folder.path(), Sharded(level, replicas)));
      through.Initialize();
      for (int i = 0; i < 3; ++i) through.Step();
      EXPECT_TRUE(through.Save().ok());
      std::vector<double> expected;
      for (int i = 0; i < 3; ++i) expected.push_back(through.Step());

      TinyRun resumed(TiedRun(folder.path(), Sharded(level, replicas)));
      const absl::StatusOr<bool> found = resumed.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      EXPECT_EQ(resumed.step(), 3);
      for (const double loss : expected) EXPECT_EQ(resumed.Step(), loss);
      ExpectSameBytes(resumed.Bytes(), through.Bytes());
    }
  }
}

TEST(Checkpoint, ALayoutMayChangeAtAnyResume) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const SharedFolder folder(*world);
  TinyRun saved(TiedRun(folder.path(), Sharded(ShardLevel::kParameters)));
  saved.Initialize();
  for (int i = 0; i < 2; ++i) saved.Step();
  EXPECT_TRUE(saved.Save().ok());
  const std::map<std::string, std::string> expected = saved.Bytes();
  for (const ShardLevel level : {ShardLevel::kNone, ShardLevel::kOptimizer, ShardLevel::kParameters}) {
    for (const int replicas : {1, 2}) {
      if (TestProcess().size() % replicas != 0) continue;
      SCOPED_TRACE(absl::StrCat(ShardLevelName(level), " replicas=", replicas));
      TinyRun loaded(TiedRun(folder.path(), Sharded(level, replicas)));
      const absl::StatusOr<bool> found = loaded.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      ExpectSameBytes(loaded.Bytes(), expected);
    }
  }
}

// Every layout this many ranks can have, by name; up to four of them.
std::vector<std::string> LayoutsOfThisJob() {
  switch (TestProcess().size()) {
    case 2:
      return {"tensor: 2", "pipeline: 2", "context: 2", "data_shard: 2 shard: PARAMETERS"};
    case 4:
      return {"tensor: 2 pipeline: 2", "data_shard: 4", "tensor: 4 shard: NONE", "context: 2 data_replicate: 2"};
    case 8:
      return {"tensor: 2 pipeline: 2 context: 2", "tensor: 2 pipeline: 2 data_shard: 2 shard: GRADIENTS",
              "pipeline: 4 data_shard: 2 pipeline_schedule: \"ZB-H1\"", "tensor: 4 context: 2"};
    default:
      return {};
  }
}

TEST(Checkpoint, SavedOnAnyMeshLoadsOnAnyOther) {
  const std::vector<std::string> layouts = LayoutsOfThisJob();
  REQUIRE_RANKS(!layouts.empty(), "layouts of 2, 4 and 8 ranks are tried");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  for (const std::string& from : layouts) {
    const SharedFolder folder(*world);
    TinyRun saved(TiedRun(folder.path(), from));
    saved.Initialize();
    for (int i = 0; i < 2; ++i) saved.Step();
    EXPECT_TRUE(saved.Save().ok());
    const std::map<std::string, std::string> expected = saved.Bytes();
    std::vector<double> losses;
    for (int i = 0; i < 2; ++i) losses.push_back(saved.Step());
    for (const std::string& to : layouts) {
      SCOPED_TRACE(absl::StrCat(from, " -> ", to));
      TinyRun loaded(TiedRun(folder.path(), to));
      const absl::StatusOr<bool> found = loaded.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      ExpectSameBytes(loaded.Bytes(), expected);
      // A rank reads what it owns, once.
      const absl::StatusOr<ShardedTensorReader> reader =
          ShardedTensorReader::Open(CheckpointFolder(folder.path(), 2) + "/weights");
      int64_t owned = 0;
      for (ParameterBuffer* buffer : loaded.model().buffers()) {
        for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
          EXPECT_TRUE(reader->Read(part).ok());
          owned += part.rectangle.numel() * 4;
        }
      }
      EXPECT_EQ(reader->bytes_read(), owned);
      // The order of sums differs between layouts, and AdamW's root enlarges round-off of small gradients.
      for (const double loss : losses) EXPECT_NEAR(loaded.Step() / loss, 1, from == to ? 0 : 1e-5);
    }
  }
}

// Experts saved by as many ranks as any load on as many as any other, bit for bit, and go on alike.
TEST(Checkpoint, ExpertsGoFromAnyMeshToAnyOther) {
  REQUIRE_RANKS(TestProcess().size() == 2 || TestProcess().size() == 4, "expert ranks of 1, 2 and 4");
  std::vector<std::string> layouts = {"expert: 1", "expert: 2 shard: OPTIMIZER", "expert: 2 tensor: 2"};
  if (TestProcess().size() == 4) layouts.push_back("expert: 4 tensor: 2 shard: NONE");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const auto run = [](const std::string& folder, const std::string& layout) {
    return std::vector<std::string>{
        "model { family: \"glm4_moe\" num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 24 "
        "first_k_dense_replace: 1 } optimizer { adamw { learning_rate: 3e-3 eps: 1e-4 } }",
        absl::StrCat("run_dir: \"", folder, "\" parallel { ", layout, " }")};
  };
  for (const std::string& from : layouts) {
    const SharedFolder folder(*world);
    TinyRun saved(run(folder.path(), from));
    saved.Initialize();
    for (int i = 0; i < 2; ++i) saved.Step();
    EXPECT_TRUE(saved.Save().ok());
    const std::map<std::string, std::string> expected = saved.Bytes();
    const double next = saved.Step();
    for (const std::string& to : layouts) {
      SCOPED_TRACE(absl::StrCat(from, " -> ", to));
      TinyRun loaded(run(folder.path(), to));
      const absl::StatusOr<bool> found = loaded.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      ExpectSameBytes(loaded.Bytes(), expected);
      EXPECT_NEAR(loaded.Step() / next, 1, from == to ? 0 : 1e-5);
    }
  }
}

// The layout of each job size in the relay below.
std::string RelayLayout(int ranks) {
  switch (ranks) {
    case 2:
      return "data_shard: 2 shard: PARAMETERS";
    case 4:
      return "tensor: 2 pipeline: 2";
    case 8:
      return "tensor: 2 pipeline: 2 context: 2";
    case 16:
      return "tensor: 2 pipeline: 2 context: 2 data_shard: 2";
    default:
      return "";
  }
}

// Jobs of 2, 4, 8, 16 and at last 1 rank each leave a checkpoint, what they held in memory and their next losses, and
// load what the jobs before them left.
TEST(Checkpoint, PassesBetweenJobsOfAnySize) {
  const char* handover = std::getenv("TRIREME_TEST_HANDOVER");
  REQUIRE_RANKS(handover != nullptr, "TRIREME_TEST_HANDOVER names no folder (ctest sets it)");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const int ranks = world->size();
  if (ranks == 2 && world->rank() == 0) std::filesystem::remove_all(handover);
  world->Barrier();
  const std::string own = absl::StrCat(handover, "/", ranks);
  const std::string layout = RelayLayout(ranks);

  int loaded = 0;
  for (const int other : {2, 4, 8, 16}) {
    const std::string folder = absl::StrCat(handover, "/", other);
    if (other == ranks || !std::filesystem::exists(folder + "/losses")) continue;
    SCOPED_TRACE(absl::StrCat("from a job of ", other));
    ++loaded;
    TinyRun run(TiedRun(folder, layout));
    const absl::StatusOr<bool> found = run.Resume();
    EXPECT_TRUE(found.ok() && *found) << found.status();
    std::map<std::string, std::string> expected;
    for (const auto& entry : std::filesystem::directory_iterator(folder + "/tensors"))
      expected[entry.path().filename().string()] = ReadFile(entry.path().string()).value();
    EXPECT_EQ(expected.size(), 60u);  // 20 parameters with two moments each
    ExpectSameBytes(run.Bytes(), expected);
    double losses[3];
    const std::string text = ReadFile(folder + "/losses").value();
    EXPECT_EQ(text.size(), sizeof(losses));
    std::memcpy(losses, text.data(), std::min(text.size(), sizeof(losses)));
    for (const double loss : losses) EXPECT_NEAR(run.Step() / loss, 1, 1e-5);
  }
  if (ranks != 2) {
    EXPECT_GT(loaded, 0) << "the job of 2 ranks must run before";
  }

  world->Barrier();
  if (world->rank() == 0) std::filesystem::remove_all(own);
  world->Barrier();
  TinyRun run(TiedRun(own, layout));
  run.Initialize();
  for (int i = 0; i < 3; ++i) run.Step();
  EXPECT_TRUE(run.Save().ok());
  const std::map<std::string, std::string> bytes = run.Bytes();
  std::vector<double> losses;
  for (int i = 0; i < 3; ++i) losses.push_back(run.Step());
  if (world->rank() == 0) {
    EXPECT_TRUE(MakeDirectories(own + "/tensors").ok());
    for (const auto& [name, contents] : bytes)
      EXPECT_TRUE(WriteFileAtomically(own + "/tensors/" + name, contents).ok());
    const std::string text(reinterpret_cast<const char*>(losses.data()), losses.size() * sizeof(double));
    EXPECT_TRUE(WriteFileAtomically(own + "/losses", text).ok());
  }
  world->Barrier();
}

}  // namespace
}  // namespace trireme
