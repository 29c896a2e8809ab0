// How a model is spread over ranks must not change what is computed: every layout against one rank that holds
// everything, in float32 with SGD and no clipping.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "tests/parallel/covering_set.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_model.h"

namespace trireme {
namespace {

constexpr ShardLevel kLevels[] = {ShardLevel::kNone, ShardLevel::kOptimizer, ShardLevel::kGradients,
                                  ShardLevel::kParameters};
constexpr int kLayoutSteps = 5;

double Norm(const at::Tensor& a) {
  double sum = 0;
  const float* data = a.const_data_ptr<float>();
  for (int64_t i = 0; i < a.numel(); ++i) sum += static_cast<double>(data[i]) * data[i];
  return std::sqrt(sum);
}

double RelativeError(const at::Tensor& a, const at::Tensor& reference) {
  double sum = 0;
  const float *x = a.const_data_ptr<float>(), *y = reference.const_data_ptr<float>();
  for (int64_t i = 0; i < a.numel(); ++i)
    sum += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
  return std::sqrt(sum) / Norm(reference);
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

struct LayoutTrajectory {
  Tensors gradients;           // of the first step
  std::vector<double> losses;  // [kLayoutSteps]
};

LayoutTrajectory Train(const Layout& layout, Mesh* mesh) {
  TinyTrainer trainer(layout, mesh);
  LayoutTrajectory result;
  for (int step = 1; step <= kLayoutSteps; ++step) {
    result.losses.push_back(trainer.ForwardBackward(/*step=*/1));  // always the same batch, so that the loss falls
    if (step == 1) result.gradients = trainer.Gradients();
    trainer.Update(step);
  }
  return result;
}

class Layouts : public testing::Test {
 protected:
  // Meshes by the number of replicas; made once, since communicators are few.
  static void SetUpTestSuite() {
    for (const int replicas : {1, 2}) {
      if (TestProcess().size() % replicas != 0) continue;
      MeshShape shape;
      shape[Axis::kDataReplicate] = replicas;
      shape[Axis::kDataShard] = TestProcess().size() / replicas;
      absl::StatusOr<std::unique_ptr<Mesh>> mesh = Mesh::Create(TestProcess(), shape, at::kCPU);
      ASSERT_TRUE(mesh.ok()) << mesh.status();
      meshes_[replicas] = *std::move(mesh);
    }
  }
  static void TearDownTestSuite() { meshes_.clear(); }
  void SetUp() override {
    REQUIRE_RANKS(TestProcess().size() <= 8, "16 sequences make 2 microbatches for at most 8 data ranks");
  }

  static inline std::map<int, std::unique_ptr<Mesh>> meshes_;
};

// ---- The covering set ----

struct LayoutCase {
  Layout layout;
  int replicas = 1;
};

std::vector<LayoutCase> Cases(const std::vector<int>& replicas) {
  std::vector<LayoutCase> cases;
  for (const std::vector<int>& r : CoveringSet({4, static_cast<int>(replicas.size()), 2, 3, 2, 2, 2})) {
    LayoutCase chosen;
    chosen.layout.shard = kLevels[r[0]];
    chosen.replicas = replicas[r[1]];
    chosen.layout.recompute = r[2] == 1;
    chosen.layout.accumulation = 1 << r[3];
    chosen.layout.reduce_last = r[4] == 1;
    chosen.layout.tied = r[5] == 1;
    chosen.layout.document_mask = r[6] == 1;
    cases.push_back(chosen);
  }
  return cases;
}

TEST_F(Layouts, SameGradientsAndLossesAsOneRankThatHoldsEverything) {
  REQUIRE_RANKS(TestProcess().size() <= 4, "16 sequences make 4 microbatches for at most 4 ranks");
  std::vector<int> replicas;
  for (const auto& [count, mesh] : meshes_) replicas.push_back(count);
  std::map<std::pair<bool, bool>, LayoutTrajectory> references;
  const std::vector<LayoutCase> cases = Cases(replicas);
  EXPECT_GE(cases.size(), 12u);
  double worst = 0;
  for (const LayoutCase& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.layout.ToString(), " replicas=", c.replicas));
    LayoutTrajectory& reference = references[{c.layout.tied, c.layout.document_mask}];
    if (reference.losses.empty()) {
      Layout alone;
      alone.tied = c.layout.tied;
      alone.document_mask = c.layout.document_mask;
      reference = Train(alone, nullptr);
      EXPECT_LT(reference.losses.back(), reference.losses.front() - 0.05) << "the reference learns nothing";
    }
    const LayoutTrajectory got = Train(c.layout, meshes_[c.replicas].get());
    EXPECT_EQ(got.gradients.size(), c.layout.tied ? 20u : 21u);
    for (const auto& [name, expected] : reference.gradients) {
      const auto found = got.gradients.find(name);
      EXPECT_NE(found, got.gradients.end()) << name;
      if (found == got.gradients.end()) continue;
      EXPECT_GT(Norm(expected), 1e-6) << name << " has no gradient to compare";
      const double error = RelativeError(found->second, expected);
      worst = std::max(worst, error);
      EXPECT_LE(error, 1e-5) << name;
      EXPECT_NEAR(Norm(found->second) / Norm(expected), 1, 1e-5) << name;
    }
    for (int i = 0; i < kLayoutSteps; ++i)
      EXPECT_NEAR(got.losses[i] / reference.losses[i], 1, 1e-5) << "step " << i + 1;
  }
  if (TestProcess().rank() == 0) std::printf("%zu layouts; largest gradient error %.2g\n", cases.size(), worst);
}

// ---- Bits ----

TEST_F(Layouts, ShardingLevelsGiveTheSameBits) {
  for (const auto& [replicas, mesh] : meshes_) {
    for (const bool reduce_last : {false, true}) {
      for (const bool tied : {false, true}) {
        Layout layout;
        layout.accumulation = 2;
        layout.reduce_last = reduce_last;
        layout.tied = tied;
        layout.shard = ShardLevel::kNone;
        TinyTrainer reference(layout, mesh.get());
        std::vector<double> losses;
        std::vector<Tensors> gradients;
        for (int step = 1; step <= 3; ++step) {
          losses.push_back(reference.ForwardBackward(step));
          gradients.push_back(reference.Gradients());
          reference.Update(step);
        }
        for (const ShardLevel level : kLevels) {
          layout.shard = level;
          SCOPED_TRACE(absl::StrCat(layout.ToString(), " replicas=", replicas));
          TinyTrainer trainer(layout, mesh.get());
          for (int step = 1; step <= 3; ++step) {
            EXPECT_EQ(trainer.ForwardBackward(step), losses[step - 1]) << "step " << step;
            for (const auto& [name, gradient] : trainer.Gradients()) {
              EXPECT_TRUE(SameBits(gradient, gradients[step - 1][name])) << name << " in step " << step;
            }
            trainer.Update(step);
          }
        }
      }
    }
  }
}

TEST_F(Layouts, RecomputingBlocksGivesTheSameBits) {
  Layout layout;
  TinyTrainer kept(layout, meshes_[1].get());
  layout.recompute = true;
  TinyTrainer recomputed(layout, meshes_[1].get());
  for (int step = 1; step <= 2; ++step) {
    EXPECT_EQ(kept.ForwardBackward(step), recomputed.ForwardBackward(step));
    const Tensors expected = kept.Gradients();
    for (const auto& [name, gradient] : recomputed.Gradients())
      EXPECT_TRUE(SameBits(gradient, expected.at(name))) << name;
    kept.Update(step);
    recomputed.Update(step);
  }
}

TEST_F(Layouts, InitialWeightsDoNotDependOnTheLayout) {
  for (const bool tied : {false, true}) {
    Layout layout;
    layout.tied = tied;
    const Tensors expected = TinyTrainer(layout, nullptr).Weights();
    EXPECT_EQ(expected.size(), tied ? 20u : 21u);
    for (const auto& [replicas, mesh] : meshes_) {
      for (const ShardLevel level : kLevels) {
        layout.shard = level;
        for (const auto& [name, weight] : TinyTrainer(layout, mesh.get()).Weights()) {
          EXPECT_TRUE(SameBits(weight, expected.at(name))) << name << " under " << layout.ToString();
        }
      }
    }
  }
}

// ---- bfloat16 ----

double LargestDeviation(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST_F(Layouts, Bfloat16IsAtMostTwiceAsFarFromFloat32AsOnOneRank) {
  for (const bool master : {true, false}) {
    Layout exact;
    exact.adamw = true;
    Layout bf16 = exact;
    bf16.compute = at::kBFloat16;
    bf16.master_weights = master;
    const LayoutTrajectory reference = Train(exact, nullptr), alone = Train(bf16, nullptr);
    const double alone_loss = LargestDeviation(alone.losses, reference.losses);
    EXPECT_GT(alone_loss, 0) << "bfloat16 should differ from float32";
    for (const auto& [replicas, mesh] : meshes_) {
      for (const ShardLevel level : {ShardLevel::kNone, ShardLevel::kParameters}) {
        bf16.shard = level;
        bf16.accumulation = 2;
        SCOPED_TRACE(absl::StrCat(bf16.ToString(), " replicas=", replicas));
        const LayoutTrajectory got = Train(bf16, mesh.get());
        for (const auto& [name, expected] : reference.gradients) {
          EXPECT_LE(RelativeError(got.gradients.at(name), expected),
                    2 * RelativeError(alone.gradients.at(name), expected))
              << name;
        }
        EXPECT_LE(LargestDeviation(got.losses, reference.losses), 2 * alone_loss);
      }
    }
  }
}

// ---- Work ----

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Elements of each buffer with padding: groups of matrices that are multiplied as one begin at multiples of 256, and
// `shards` shards of a multiple of 256 elements make the whole.
std::vector<int64_t> PaddedSizes(const DecoderSpec& s, int shards) {
  const AttentionShape a = s.attentions()[0];
  const int64_t h = s.hidden_size, q = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim, f = 100, v = s.vocab_size;
  const std::vector<int64_t> block = {h, (q + 2 * kv) * h, h * q, h, 2 * f * h, h * f};
  std::vector<std::vector<int64_t>> buffers = {{v * h}};
  for (int64_t layer = 0; layer < s.num_layers; ++layer) buffers.push_back(block);
  buffers.push_back(s.tied_embeddings ? std::vector<int64_t>{h} : std::vector<int64_t>{h, v * h});
  std::vector<int64_t> sizes;
  for (const std::vector<int64_t>& groups : buffers) {
    int64_t n = 0;
    for (const int64_t group : groups) n = RoundUp(n, 256) + group;
    sizes.push_back(RoundUp(n, 256 * shards));
  }
  return sizes;
}

// Bytes a rank sends in one all_reduce: everything to everybody while that is little, else each part twice.
int64_t AllReduceBytes(int64_t elements, int ranks) {
  return elements <= 16384 ? elements * 4 * (ranks - 1) : 2 * RoundUp(elements, ranks) / ranks * 4 * (ranks - 1);
}

TEST_F(Layouts, CallsAndBytesOfAStepEqualTheFormula) {
  REQUIRE_RANKS(TestProcess().size() > 1, "one rank sends nothing");
  for (const auto& [replicas, mesh] : meshes_) {
    const int shards = TestProcess().size() / replicas;
    for (const ShardLevel level : kLevels) {
      for (const bool reduce_last : {false, true}) {
        for (const bool tied : {false, true}) {
          Layout layout;
          layout.shard = level;
          layout.accumulation = 4;
          layout.reduce_last = reduce_last;
          layout.tied = tied;
          SCOPED_TRACE(absl::StrCat(layout.ToString(), " replicas=", replicas));
          TinyTrainer trainer(layout, mesh.get());
          trainer.ForwardBackward(1);
          trainer.Update(1);
          mesh->log().ResetCounts();
          trainer.ForwardBackward(2);
          trainer.Update(2);
          const auto counts = mesh->log().counts();

          const std::vector<int64_t> sizes = PaddedSizes(TinySpec(tied), shards);
          const int64_t reductions = reduce_last ? 1 : layout.accumulation;
          std::map<std::pair<std::string, std::string>, OperationCount> expected;
          const auto expect = [&](const char* group, const char* operation, int64_t calls, int64_t bytes_each) {
            if (calls == 0) return;
            OperationCount& count = expected[{group, operation}];
            count.calls += calls;
            count.bytes += calls * bytes_each;
          };
          for (size_t i = 0; i < sizes.size() && shards > 1; ++i) {
            const int64_t part = sizes[i] / shards * 4 * (shards - 1);
            const bool first = i == 0, last = i + 1 == sizes.size();
            // Once forward and once backward; the head keeps what it gathered in between, and the embedding's backward
            // reads nothing. A tied matrix is also gathered for the head.
            const int64_t gathers = last ? 1 : first ? (tied ? 2 : 1) : 2;
            if (level == ShardLevel::kParameters) {
              expect("data_shard+context", "all_gather", gathers * layout.accumulation, part);
            } else if (level != ShardLevel::kNone) {
              expect("data_shard+context", "all_gather", 1, part);  // after the update
            }
            if (level == ShardLevel::kNone) {
              expect("data_shard+context", "all_reduce", reductions, AllReduceBytes(sizes[i], shards));
            } else {
              expect("data_shard+context", "reduce_scatter", reductions, part);
            }
          }
          for (const int64_t size : sizes) {
            const int64_t own = level == ShardLevel::kNone ? size : size / shards;
            expect("data_replicate", "all_reduce", replicas > 1 ? 1 : 0, AllReduceBytes(own, replicas));
          }
          // The test's own sum of losses.
          expect("data_replicate+data_shard", "all_gather", 1, 8 * (TestProcess().size() - 1));

          EXPECT_EQ(counts.size(), expected.size());
          for (const auto& [key, count] : expected) {
            const auto found = counts.find(key);
            EXPECT_NE(found, counts.end()) << key.first << " " << key.second;
            if (found == counts.end()) continue;
            EXPECT_EQ(found->second.calls, count.calls) << key.first << " " << key.second;
            EXPECT_EQ(found->second.bytes, count.bytes) << key.first << " " << key.second;
          }
        }
      }
    }
  }
}

TEST_F(Layouts, TheNextUnitIsBeingGatheredWhileOneComputes) {
  REQUIRE_RANKS(TestProcess().size() > 1, "one rank gathers nothing");
  Mesh& mesh = *meshes_[1];
  std::vector<std::string> actions;
  std::vector<int64_t> gathers_before;  // all_gathers issued when the action began
  TinyTrainer trainer(Layout(), &mesh, [&](const std::string& action, int unit) {
    actions.push_back(absl::StrCat(action, " ", unit));
    const auto counts = mesh.log().counts();
    const auto found = counts.find({"data_shard+context", "all_gather"});
    gathers_before.push_back(found == counts.end() ? 0 : found->second.calls);
  });
  mesh.log().ResetCounts();
  trainer.ForwardBackward(1);
  EXPECT_EQ(actions, (std::vector<std::string>{
                         "unshard 0", "unshard 1", "forward 0", "reshard 0", "unshard 2", "forward 1", "reshard 1",
                         "unshard 3", "forward 2", "reshard 2", "forward 3",
                         // backward
                         "unshard 2", "backward 3", "reduce 3", "reshard 3", "unshard 1", "backward 2", "reduce 2",
                         "reshard 2", "backward 1", "reduce 1", "reshard 1", "backward 0", "reduce 0"}));
  const std::map<std::string, int64_t> expected_gathers = {
      {"forward 0", 2}, {"forward 1", 3}, {"forward 2", 4}, {"backward 3", 5}, {"backward 1", 6}};
  for (size_t i = 0; i < actions.size(); ++i) {
    const auto expected = expected_gathers.find(actions[i]);
    if (expected == expected_gathers.end()) continue;
    EXPECT_EQ(gathers_before[i], expected->second) << actions[i];
  }
}

}  // namespace
}  // namespace trireme
