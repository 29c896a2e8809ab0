// How evenly the tokens of a step are spread over experts, and what evens them out: the same on every mesh.
#include <gtest/gtest.h>

#include <cmath>

#include "parallel/comm/mpi_group.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/shared_folder.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

constexpr int kBalancedSteps = 20;
constexpr double kBiasRate = 0.01;
constexpr char kBalanced[] =
    "model { family: \"glm4_moe\" num_experts: 8 num_experts_per_tok: 3 moe_intermediate_size: 24 n_shared_experts: 1 "
    "first_k_dense_replace: 1 num_hidden_layers: 3 partial_rotary_factor: 1 } "
    "loss { router_aux_loss: 0.1 router_z_loss: 0.01 } optimizer { router_bias_rate: 0.01 } ";
const char* const kSparseLayers[] = {"model.layers.1", "model.layers.2"};

std::string BiasOf(const std::string& layer) { return layer + ".mlp.gate.e_score_correction_bias"; }

// A bias by layer.
using Biases = std::map<std::string, std::vector<float>>;

Biases BiasesOf(TinyRun& run) {
  Biases biases;
  const Tensors weights = run.Weights();
  for (const char* layer : kSparseLayers) {
    const at::Tensor& bias = weights.at(BiasOf(layer));
    biases[layer].assign(bias.const_data_ptr<float>(), bias.const_data_ptr<float>() + bias.numel());
  }
  return biases;
}

// The rule of arXiv 2408.15664, written down again.
void Balance(const ExpertLoads& loads, Biases* biases) {
  for (auto& [layer, bias] : *biases) {
    const at::Tensor counts = loads.Counts(BiasOf(layer));
    double mean = 0;
    for (int64_t e = 0; e < counts.numel(); ++e) mean += counts.const_data_ptr<double>()[e] / 8;
    for (int64_t e = 0; e < counts.numel(); ++e) {
      const double below = mean - counts.const_data_ptr<double>()[e];
      bias[static_cast<size_t>(e)] += static_cast<float>(below > 0 ? kBiasRate : below < 0 ? -kBiasRate : 0);
    }
  }
}

struct Course {
  std::vector<RouterResults> steps;
  Biases biases;
};

// The run up to step `last`, with ends of sequences that are no tokens.
Course TrainBalanced(TinyRun& run, int last) {
  run.FillEnds();
  Course course;
  while (run.step() < last) course.steps.push_back(*run.Issue().Wait().routers);
  course.biases = BiasesOf(run);
  return course;
}

const Course& BalancedReference() {
  static const Course* const reference = [] {
    TinyRun alone({kBalanced}, /*alone=*/true);
    alone.Initialize();
    return new Course(TrainBalanced(alone, kBalancedSteps));
  }();
  return *reference;
}

// What the steps after `first_step` were, as on one rank.
void ExpectSameSteps(const Course& got, int first_step) {
  const Course& expected = BalancedReference();
  for (size_t i = 0; i < got.steps.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("step ", first_step + static_cast<int>(i) + 1));
    const RouterResults &a = got.steps[i], &b = expected.steps[i + static_cast<size_t>(first_step)];
    EXPECT_NEAR(a.aux_loss / b.aux_loss, 1, 1e-5);
    EXPECT_NEAR(a.z_loss / b.z_loss, 1, 1e-5);
    for (size_t layer = 0; layer < b.layers.size(); ++layer) {
      EXPECT_EQ(a.layers[layer].block, b.layers[layer].block);
      EXPECT_EQ(a.layers[layer].max_over_mean, b.layers[layer].max_over_mean);
      EXPECT_EQ(a.layers[layer].entropy, b.layers[layer].entropy);
      EXPECT_EQ(a.layers[layer].idle, b.layers[layer].idle);
    }
  }
}

std::vector<std::string> BalancedLayouts() {
  switch (TestProcess().size()) {
    case 1:
      return {"recompute { policy: BLOCK }", "micro_batch_size: 4 recompute { policy: SELECTIVE }"};
    case 2:
      return {"parallel { data_shard: 2 }", "parallel { expert: 2 } recompute { policy: BLOCK }",
              "parallel { context: 2 expert: 2 } micro_batch_size: 2",
              "parallel { pipeline: 2 pipeline_schedule: \"ZB-V\" } micro_batch_size: 2"};
    case 4:
      return {"parallel { tensor: 2 pipeline: 2 pipeline_schedule: \"ZB-H1\" } recompute { policy: BLOCK }",
              "parallel { data_replicate: 2 data_shard: 2 expert: 2 shard: NONE } micro_batch_size: 4",
              "parallel { context: 2 tensor: 2 expert: 4 reduce_gradients: LAST_MICROBATCH }"};
    default:
      return {};
  }
}

// Tokens that only fill a sequence are no load: of 16 sequences of 32, 0 to 4 at a time, 30 are none.
TEST(Balance, OneRankFollowsTheRule) {
  REQUIRE_RANKS(TestProcess().size() == 1, "others are compared with one");
  TinyRun run({kBalanced}, /*alone=*/true);
  run.Initialize();
  run.FillEnds();
  Biases expected = BiasesOf(run);
  for (int step = 0; step < kBalancedSteps; ++step) {
    run.Issue();
    Balance(*run.model().loads(), &expected);
    for (const char* layer : kSparseLayers)
      EXPECT_EQ(run.model().loads()->Counts(BiasOf(layer)).sum().item<double>(), 3 * (16 * 32 - 30));
  }
  EXPECT_EQ(BiasesOf(run), expected);
  EXPECT_NE(expected[kSparseLayers[0]], std::vector<float>(8, 0.0F));
}

// The first half of a run on one layout, the second, from a checkpoint, on the next: each does both.
TEST(Balance, TheSameOnEveryLayoutAndResumedOnAnother) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  const std::vector<std::string> layouts = BalancedLayouts();
  for (size_t i = 0; i < layouts.size(); ++i) {
    const std::string& next = layouts[(i + 1) % layouts.size()];
    SCOPED_TRACE(absl::StrCat(layouts[i], " then ", next));
    const SharedFolder folder(*world);
    const std::string place = absl::StrCat("run_dir: \"", folder.path(), "\"");
    TinyRun saved({kBalanced, layouts[i], place});
    saved.Initialize();
    const Course first_half = TrainBalanced(saved, kBalancedSteps / 2);
    ExpectSameSteps(first_half, 0);
    EXPECT_TRUE(saved.Save().ok());
    TinyRun resumed({kBalanced, next, place});
    const absl::StatusOr<bool> found = resumed.Resume();
    EXPECT_TRUE(found.ok() && *found) << found.status();
    EXPECT_EQ(BiasesOf(resumed), first_half.biases);
    const Course second_half = TrainBalanced(resumed, kBalancedSteps);
    ExpectSameSteps(second_half, kBalancedSteps / 2);
    EXPECT_EQ(second_half.biases, BalancedReference().biases) << "to the bit";
  }
}

}  // namespace
}  // namespace trireme
