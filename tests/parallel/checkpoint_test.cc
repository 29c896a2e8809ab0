// Checkpoints across layouts: what two ranks saved, one and four ranks load, bit for bit; and a run that was stopped
// goes on as if it had not been.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "launch/file.h"
#include "parallel/comm/mpi_group.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_model.h"
#include "trainer/agreement.h"
#include "trainer/checkpointer.h"

namespace trireme {
namespace {

RunConfig TinyConfig(const std::string& run_dir, ParallelConfig::Shard level, int replicas) {
  const DecoderSpec spec = TinySpec(/*tied=*/true);
  RunConfig config;
  ModelConfig* model = config.mutable_model();
  model->set_num_hidden_layers(static_cast<int32_t>(spec.num_layers));
  model->set_hidden_size(static_cast<int32_t>(spec.hidden_size));
  model->set_num_attention_heads(static_cast<int32_t>(spec.num_heads));
  model->set_num_key_value_heads(static_cast<int32_t>(spec.num_kv_heads));
  model->set_intermediate_size(static_cast<int32_t>(spec.intermediate_size));
  model->set_vocab_size(static_cast<int32_t>(spec.vocab_size));
  model->set_tie_word_embeddings(true);
  config.mutable_data()->set_sequence_length(static_cast<int32_t>(kTinySequenceLength));
  config.set_global_batch_size(static_cast<int32_t>(kTinyGlobalBatch));
  config.set_micro_batch_size(static_cast<int32_t>(kTinyGlobalBatch / TestProcess().size()));
  config.mutable_parallel()->set_shard(level);
  config.mutable_parallel()->set_data_replicate(replicas);
  config.mutable_optimizer()->mutable_adamw()->set_learning_rate(3e-3);
  config.mutable_train_for()->set_steps(100);
  config.set_run_dir(run_dir);
  return config;
}

// A run without a command line.
class TinyRun {
 public:
  TinyRun(const std::string& run_dir, ParallelConfig::Shard level, int replicas = 1) {
    absl::StatusOr<Recipe> recipe =
        MakeRecipe(TinyConfig(run_dir, level, replicas), TestProcess().size(), extensions_.families, {}, CorpusFacts());
    TRIREME_CHECK(recipe.ok(), recipe.status().message());
    recipe_ = *std::move(recipe);
    absl::StatusOr<std::unique_ptr<Mesh>> mesh = Mesh::Create(TestProcess(), recipe_.mesh, at::kCPU);
    TRIREME_CHECK(mesh.ok(), mesh.status().message());
    mesh_ = *std::move(mesh);
    absl::StatusOr<std::unique_ptr<Model>> model = Model::Create(recipe_, *mesh_, extensions_);
    TRIREME_CHECK(model.ok(), model.status().message());
    model_ = *std::move(model);
    optimizer_ = std::make_unique<Optimizer>(recipe_.config.optimizer(), model_->buffers(), recipe_.config.seed());
    checkpointer_ = std::make_unique<Checkpointer>(recipe_, *mesh_, *model_, *optimizer_, std::vector<std::string>());
  }

  void Initialize() { model_->Initialize(); }

  double Step() {
    progress_.set_step(progress_.step() + 1);
    StepBatch batch;
    const int64_t count = kTinyGlobalBatch / mesh_->num_data_ranks();
    batch.microbatches.push_back(TinyMicrobatch(progress_.step(), mesh_->data_rank() * count, count, true));
    const absl::StatusOr<Loss> loss = model_->ForwardBackward(batch);
    TRIREME_CHECK(loss.ok(), loss.status().message());
    const GradNorm norm = model_->ClipGradNorm(1.0);
    optimizer_->Step(progress_.step(), 3e-3, norm.clip_factor);
    return loss->mean;
  }

  absl::Status Save() { return checkpointer_->Save(progress_); }
  absl::StatusOr<bool> Resume() { return checkpointer_->Resume(/*allow_change=*/false, &progress_); }
  int64_t step() const { return progress_.step(); }
  ProcessGroup& world() { return mesh_->control(); }

  // Bytes of every whole tensor, weights and optimizer state, by name. Collective.
  std::map<std::string, std::string> Bytes() {
    std::map<std::string, std::string> bytes;
    const auto add = [&](const ParameterBuffer& buffer, const at::Tensor& own, const std::string& suffix) {
      for (const auto& [name, tensor] : WholeTensors(buffer, own)) {
        bytes[name + suffix] = std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
      }
    };
    for (ParameterBuffer* buffer : model_->buffers()) add(*buffer, buffer->own_weights(), "");
    for (const Optimizer::State& state : optimizer_->states()) add(*state.buffer, state.tensor, "." + state.name);
    return bytes;
  }

 private:
  Extensions extensions_;
  Recipe recipe_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Checkpointer> checkpointer_;
  TrainProgress progress_;
};

// A folder that all ranks see; rank 0 makes and removes it.
class SharedFolder {
 public:
  explicit SharedFolder(ProcessGroup& world) : world_(world) {
    std::string path;
    if (world.rank() == 0) {
      path = (std::filesystem::temp_directory_path() / "trireme-test-XXXXXX").string();
      TRIREME_CHECK(mkdtemp(path.data()) != nullptr, path);
    }
    path_ = BroadcastBytes(world, path);
  }
  ~SharedFolder() {
    world_.Barrier();
    if (world_.rank() == 0) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }

 private:
  ProcessGroup& world_;
  std::string path_;
};

void ExpectSame(const std::map<std::string, std::string>& got, const std::map<std::string, std::string>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  for (const auto& [name, bytes] : expected) {
    const auto found = got.find(name);
    EXPECT_TRUE(found != got.end() && found->second == bytes) << name;
  }
}

TEST(Checkpoint, ResumingOnTheSameLayoutGivesTheSameBits) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  for (const ParallelConfig::Shard level :
       {ParallelConfig::NONE, ParallelConfig::GRADIENTS, ParallelConfig::PARAMETERS}) {
    for (const int replicas : {1, 2}) {
      if (TestProcess().size() % replicas != 0) continue;
      SCOPED_TRACE(absl::StrCat(ParallelConfig::Shard_Name(level), " replicas=", replicas));
      const SharedFolder folder(*world);
      TinyRun through(folder.path(), level, replicas);
      through.Initialize();
      for (int i = 0; i < 3; ++i) through.Step();
      EXPECT_TRUE(through.Save().ok());
      std::vector<double> expected;
      for (int i = 0; i < 3; ++i) expected.push_back(through.Step());

      TinyRun resumed(folder.path(), level, replicas);
      const absl::StatusOr<bool> found = resumed.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      EXPECT_EQ(resumed.step(), 3);
      for (const double loss : expected) EXPECT_EQ(resumed.Step(), loss);
      ExpectSame(resumed.Bytes(), through.Bytes());
    }
  }
}

TEST(Checkpoint, ALayoutMayChangeAtAnyResume) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const SharedFolder folder(*world);
  TinyRun saved(folder.path(), ParallelConfig::PARAMETERS);
  saved.Initialize();
  for (int i = 0; i < 2; ++i) saved.Step();
  EXPECT_TRUE(saved.Save().ok());
  const std::map<std::string, std::string> expected = saved.Bytes();
  for (const ParallelConfig::Shard level :
       {ParallelConfig::NONE, ParallelConfig::OPTIMIZER, ParallelConfig::PARAMETERS}) {
    for (const int replicas : {1, 2}) {
      if (TestProcess().size() % replicas != 0) continue;
      SCOPED_TRACE(absl::StrCat(ParallelConfig::Shard_Name(level), " replicas=", replicas));
      TinyRun loaded(folder.path(), level, replicas);
      const absl::StatusOr<bool> found = loaded.Resume();
      EXPECT_TRUE(found.ok() && *found) << found.status();
      ExpectSame(loaded.Bytes(), expected);
    }
  }
}

// The job of two ranks leaves a checkpoint, what it held in memory, and its next losses; jobs of other sizes read them.
TEST(Checkpoint, OfTwoRanksLoadsOnAnyNumber) {
  const char* handover = std::getenv("TRIREME_TEST_HANDOVER");
  REQUIRE_RANKS(handover != nullptr, "TRIREME_TEST_HANDOVER names no folder (ctest sets it)");
  const std::string folder = handover;
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const bool writes = world->size() == 2;
  if (writes && world->rank() == 0) std::filesystem::remove_all(folder);
  world->Barrier();
  REQUIRE_RANKS(writes || std::filesystem::exists(folder + "/losses"), "a job of 2 ranks must run before");

  TinyRun run(folder, ParallelConfig::PARAMETERS);
  if (writes) {
    run.Initialize();
    for (int i = 0; i < 3; ++i) run.Step();
    EXPECT_TRUE(run.Save().ok());
    const std::map<std::string, std::string> bytes = run.Bytes();
    std::vector<double> losses;
    for (int i = 0; i < 3; ++i) losses.push_back(run.Step());
    if (world->rank() == 0) {
      EXPECT_TRUE(MakeDirectories(folder + "/tensors").ok());
      for (const auto& [name, contents] : bytes)
        EXPECT_TRUE(WriteFileAtomically(folder + "/tensors/" + name, contents).ok());
      const std::string text(reinterpret_cast<const char*>(losses.data()), losses.size() * sizeof(double));
      EXPECT_TRUE(WriteFileAtomically(folder + "/losses", text).ok());
    }
    world->Barrier();
    return;
  }
  const absl::StatusOr<bool> found = run.Resume();
  EXPECT_TRUE(found.ok() && *found) << found.status();
  std::map<std::string, std::string> expected;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/tensors")) {
    expected[entry.path().filename().string()] = ReadFile(entry.path().string()).value();
  }
  EXPECT_EQ(expected.size(), 60u);  // 20 parameters with two moments each
  ExpectSame(run.Bytes(), expected);
  double losses[3];
  const std::string text = ReadFile(folder + "/losses").value();
  EXPECT_EQ(text.size(), sizeof(losses));
  std::memcpy(losses, text.data(), std::min(text.size(), sizeof(losses)));
  for (const double loss : losses) EXPECT_NEAR(run.Step() / loss, 1, 1e-5);
}

}  // namespace
}  // namespace trireme
