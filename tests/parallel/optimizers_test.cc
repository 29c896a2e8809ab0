// Optimizers on every layout: given the same gradients, weights and state are those of one rank to the bit, also when a
// run goes on elsewhere.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include "kernels/base/philox.h"
#include "parallel/comm/mpi_group.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/shared_folder.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

using AllBytes = std::map<std::string, std::string>;

// Replaces every gradient by numbers that follow from the step and an element's place in its parameter, so that no
// layout's order of sums shows.
void PutGradients(TinyRun& run, int64_t step) {
  for (ParameterBuffer* buffer : run.model().buffers()) {
    if (!buffer->own_gradient().defined()) continue;
    float* gradient = buffer->own_gradient().mutable_data_ptr<float>();
    for (const Segment& segment : buffer->segments()) {
      const std::string& name = buffer->specs()[segment.parameter].name;
      const RandomKey key = MakeRandomKey(7, RandomPurpose::kInitialization, StableId(name.c_str()), step);
      const WholeIndex whole = buffer->WholeIndexOf(segment);
      for (int64_t i = 0; i < segment.numel; ++i) {
        const Random4 random = Philox(key, static_cast<uint64_t>(whole.Of(i)), 0);
        gradient[segment.own_begin + i] = (static_cast<float>(random.word[0] >> 8) * 0x1p-24F - 0.5F) * 0.01F;
      }
    }
  }
}

void StepWithPutGradients(TinyRun& run) {
  run.ForwardBackward(/*step=*/1);
  PutGradients(run, run.step() + 1);
  run.Update();
}

// Weights and state after three steps on this rank alone; computed once for each description of the numbers.
const AllBytes& Expected(const std::string& numbers) {
  static auto* const computed = new std::map<std::string, AllBytes>;
  const auto [found, added] = computed->try_emplace(numbers);
  if (added) {
    TinyRun alone({numbers}, /*alone=*/true);
    alone.Initialize();
    for (int i = 0; i < 3; ++i) StepWithPutGradients(alone);
    found->second = alone.Bytes();
  }
  return found->second;
}

std::vector<std::string> LayoutsFor(bool experts) {
  switch (TestProcess().size()) {
    case 2:
      return {"tensor: 2",        "pipeline: 2",      "context: 2",        "shard: NONE",
              "shard: OPTIMIZER", "shard: GRADIENTS", "shard: PARAMETERS", experts ? "expert: 2" : "data_replicate: 2"};
    case 4:
      return {"tensor: 2 pipeline: 2",
              "data_shard: 4",
              "tensor: 2 data_shard: 2 shard: OPTIMIZER",
              "tensor: 4 shard: NONE",
              experts ? "expert: 4 tensor: 2" : "context: 2 data_replicate: 2",
              experts ? "expert: 2 data_shard: 4 shard: GRADIENTS" : "tensor: 2 context: 2"};
    case 8:
      return {"tensor: 2 pipeline: 2 context: 2", "tensor: 2 pipeline: 2 data_shard: 2 shard: GRADIENTS"};
    default:
      return {};
  }
}

constexpr char kMuon[] = "optimizer { muon { learning_rate: 0.02 adamw { learning_rate: 3e-3 eps: 1e-4 } } } ",
               kLion[] = "optimizer { lion { learning_rate: 1e-3 weight_decay: 0.1 } } ",
               kEightBits[] =
                   "model { vocab_size: 256 intermediate_size: 128 } "
                   "optimizer { adamw { learning_rate: 1e-3 eps: 1e-4 state: INT8 } } ",
               kFourExperts[] =
                   "model { family: \"qwen3_moe\" num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 24 } ",
               kRoundedWeights[] = "precision { compute: BF16 master_weights: false } ";

void CompareOnAllLayouts(const std::string& numbers, bool experts = false) {
  const std::vector<std::string> layouts = LayoutsFor(experts);
  REQUIRE_RANKS(!layouts.empty(), "layouts of 2, 4 and 8 ranks are tried");
  for (const std::string& layout : layouts) {
    SCOPED_TRACE(absl::StrCat(numbers, " | ", layout));
    TinyRun run({numbers, absl::StrCat("parallel { ", layout, " }")});
    run.Initialize();
    for (int i = 0; i < 3; ++i) StepWithPutGradients(run);
    ExpectSameBytes(run.Bytes(), Expected(numbers));
  }
}

TEST(Optimizers, MuonIsTheSameOnEveryLayout) { CompareOnAllLayouts(kMuon); }

TEST(Optimizers, MuonOfExpertsIsTheSameOnEveryLayout) {
  CompareOnAllLayouts(std::string(kMuon) + kFourExperts, /*experts=*/true);
}

// Key and value heads on several ranks each; weights that are rounded at random.
TEST(Optimizers, MuonOfFewHeadsAndRoundedWeightsIsTheSameOnEveryLayout) {
  CompareOnAllLayouts(std::string(kMuon) + kRoundedWeights + "model { num_key_value_heads: 1 }");
}

TEST(Optimizers, LionIsTheSameOnEveryLayout) {
  CompareOnAllLayouts(kLion);
  CompareOnAllLayouts(std::string(kLion) + kRoundedWeights);
}

// Rows of 64 and of 128 elements: a block is several rows.
TEST(Optimizers, EightBitStatesAreTheSameOnEveryLayout) {
  REQUIRE_RANKS(TestProcess().size() == 2, "on more ranks these matrices would be cut inside of blocks");
  for (const char* layout : {"pipeline: 2", "context: 2", "shard: NONE", "shard: OPTIMIZER", "shard: GRADIENTS",
                             "shard: PARAMETERS", "data_replicate: 2"}) {
    SCOPED_TRACE(layout);
    for (const std::string& numbers : {std::string(kEightBits), std::string(kEightBits) + kRoundedWeights}) {
      TinyRun run({numbers, absl::StrCat("parallel { ", layout, " }")});
      run.Initialize();
      for (int i = 0; i < 3; ++i) StepWithPutGradients(run);
      ExpectSameBytes(run.Bytes(), Expected(numbers));
    }
  }
}

TEST(Optimizers, EightBitStatesGoOnOnAnotherMesh) {
  REQUIRE_RANKS(TestProcess().size() == 2, "on more ranks these matrices would be cut inside of blocks");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const SharedFolder folder(*world);
  const std::string place = absl::StrCat(kEightBits, "run_dir: \"", folder.path(), "\" ");
  TinyRun saved({place, "parallel { shard: PARAMETERS }"});
  saved.Initialize();
  for (int step = 0; step < 2; ++step) StepWithPutGradients(saved);
  EXPECT_TRUE(saved.Save().ok());
  TinyRun loaded({place, "parallel { pipeline: 2 }"});
  const absl::StatusOr<bool> found = loaded.Resume();
  EXPECT_TRUE(found.ok() && *found) << found.status();
  StepWithPutGradients(loaded);
  ExpectSameBytes(loaded.Bytes(), Expected(kEightBits));
}

TEST(Optimizers, MuonGoesOnOnAnotherMesh) {
  const std::vector<std::string> layouts = LayoutsFor(/*experts=*/false);
  REQUIRE_RANKS(!layouts.empty(), "layouts of 2, 4 and 8 ranks are tried");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  for (size_t i = 0; i < layouts.size(); ++i) {
    const SharedFolder folder(*world);
    const std::string place = absl::StrCat(kMuon, "run_dir: \"", folder.path(), "\" ");
    const std::string &from = layouts[i], &to = layouts[(i + 1) % layouts.size()];
    SCOPED_TRACE(absl::StrCat(from, " -> ", to));
    TinyRun saved({place, absl::StrCat("parallel { ", from, " }")});
    saved.Initialize();
    for (int step = 0; step < 2; ++step) StepWithPutGradients(saved);
    EXPECT_TRUE(saved.Save().ok());
    TinyRun loaded({place, absl::StrCat("parallel { ", to, " }")});
    const absl::StatusOr<bool> found = loaded.Resume();
    EXPECT_TRUE(found.ok() && *found) << found.status();
    StepWithPutGradients(loaded);
    ExpectSameBytes(loaded.Bytes(), Expected(kMuon));
  }
}

}  // namespace
}  // namespace trireme
