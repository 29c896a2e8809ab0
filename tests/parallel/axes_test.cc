// Tensor, pipeline, context and data parallelism, alone and together, against one rank that holds everything: float32,
// SGD, no clipping.
#include <ATen/ops/equal.h>
#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "kernels/base/cpu_allocator.h"
#include "tests/parallel/covering_set.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

constexpr int kSteps = 3;

struct Trajectory {
  Tensors gradients;  // of the first step
  double grad_norm = 0;
  std::vector<double> losses;
  double evaluated = 0;
};

using Prepare = void (*)(TinyRun& run);  // after Initialize(); null: nothing

Trajectory Train(TinyRun& run, Prepare prepare = nullptr) {
  run.Initialize();
  if (prepare != nullptr) prepare(run);
  Trajectory result;
  for (int step = 1; step <= kSteps; ++step) {
    result.losses.push_back(run.ForwardBackward(/*step=*/1));  // always the same batch, so that the loss falls
    if (step == 1) {
      result.gradients = run.Gradients();
      result.grad_norm = run.model().ClipGradNorm(0).total;
    }
    run.Update();
  }
  result.evaluated = run.Evaluate(/*step=*/2);
  return result;
}

// References by what defines the numbers, so that each is computed once per job.
const Trajectory& Reference(const std::string& numbers) {
  static auto* const references = new std::map<std::string, Trajectory>;
  const auto [found, added] = references->try_emplace(numbers);
  if (added) {
    TinyRun alone({numbers, "kernels { attention: \"math\" }"}, /*alone=*/true);
    found->second = Train(alone);
    EXPECT_LT(found->second.losses.back(), found->second.losses.front() - 0.02) << "the reference learns nothing";
  }
  return found->second;
}

// Largest relative distance of a gradient tensor.
double ExpectSame(const Trajectory& got, const Trajectory& reference) {
  double worst = 0;
  EXPECT_EQ(got.gradients.size(), reference.gradients.size());
  for (const auto& [name, expected] : reference.gradients) {
    // Without rotation the same vector is added to all keys, which changes no attention.
    if (absl::EndsWith(name, ".k_proj.bias") && TensorNorm(expected) < 1e-6) {
      EXPECT_LT(TensorNorm(got.gradients.at(name)), 1e-6) << name;
      continue;
    }
    // Numbers that no gradient reaches.
    if (absl::EndsWith(name, "correction_bias") || absl::EndsWith(name, "act_fn.beta") ||
        absl::EndsWith(name, "act_fn.eps")) {
      EXPECT_EQ(TensorNorm(got.gradients.at(name)), 0) << name;
      continue;
    }
    EXPECT_GT(TensorNorm(expected), 1e-6) << name << " has no gradient to compare";
    const double error = RelativeDistance(got.gradients.at(name), expected);
    worst = std::max(worst, error);
    // Sums are taken in another order: float32 round-off of a few thousand terms.
    EXPECT_LE(error, 1e-5) << name;
    EXPECT_NEAR(TensorNorm(got.gradients.at(name)) / TensorNorm(expected), 1, 1e-5) << name;
  }
  EXPECT_NEAR(got.grad_norm / reference.grad_norm, 1, 1e-5);
  for (int i = 0; i < kSteps; ++i) EXPECT_NEAR(got.losses[i] / reference.losses[i], 1, 1e-5) << "step " << i + 1;
  EXPECT_NEAR(got.evaluated / reference.evaluated, 1, 1e-5);
  return worst;
}

// Compares the layout with one rank; numbers: what defines the numbers.
double Compare(const std::string& numbers, const std::string& layout) {
  SCOPED_TRACE(absl::StrCat(numbers, " | ", layout));
  TinyRun run({numbers, layout});
  const Trajectory got = Train(run);
  return ExpectSame(got, Reference(numbers));
}

int World() { return TestProcess().size(); }

constexpr char kTied[] = "model { tie_word_embeddings: true }";
constexpr char kDocuments[] = " data { document_mask: true }";

TEST(Axes, EachAlone) {
  REQUIRE_RANKS(World() > 1 && World() <= 8, "8 heads are to be shared");
  double worst = 0;
  for (const std::string& numbers : {std::string(), std::string(kTied) + kDocuments}) {
    worst = std::max(worst, Compare(numbers, absl::StrCat("parallel { tensor: ", World(), " }")));
    if (World() <= 4) {
      worst = std::max(worst, Compare(numbers, absl::StrCat("parallel { pipeline: ", World(), " }")));
    }
    for (const char* method : {"GATHER", "RING"}) {
      worst = std::max(worst, Compare(numbers, absl::StrCat("micro_batch_size: 2 parallel { context: ", World(),
                                                            " context_method: ", method, " }")));
    }
  }
  if (TestProcess().rank() == 0) std::printf("largest gradient error %.2g\n", worst);
}

// Keys and values of 2 heads on more ranks, a vocabulary that leaves the last rank with fewer rows, three blocks on
// stages that they do not divide into, a window shorter than what a rank holds and one that crosses ranks.
TEST(Axes, SizesThatDoNotDivide) {
  REQUIRE_RANKS(World() > 1 && World() <= 8, "8 heads are to be shared");
  Compare("model { num_key_value_heads: 2 vocab_size: 213 }", absl::StrCat("parallel { tensor: ", World(), " }"));
  Compare("model { num_key_value_heads: 1 }", absl::StrCat("parallel { tensor: ", World(), " shard: NONE }"));
  if (World() <= 4) {
    Compare("model { num_hidden_layers: 3 }", absl::StrCat("parallel { pipeline: ", World(), " }"));
    // 16 sequences as 5 microbatches of 3 are 15: one that the ranks do not divide.
    Compare("global_batch_size: 15", absl::StrCat("micro_batch_size: 3 parallel { pipeline: ", World(), " }"));
  }
  for (const char* method : {"GATHER", "RING"}) {
    for (const int window : {3, 11}) {
      Compare(absl::StrCat("model { sliding_window: ", window, " }", window == 3 ? kDocuments : ""),
              absl::StrCat("parallel { context: ", World(), " context_method: ", method, " }"));
    }
  }
}

// What families add to Llama's decoder, on every axis: biases, norms of heads, layers without rotation or with another,
// norms after sublayers, soft caps, LayerNorms, learned positions, partial rotation, parallel residuals.
TEST(Axes, EveryFamily) {
  REQUIRE_RANKS(World() == 2 || World() == 4, "each axis of 2 or 4 ranks");
  const std::string windows = "sliding_window: 5 layer_types: \"sliding_attention\" layer_types: \"full_attention\" ";
  const std::string families[] = {
      "model { family: \"llama\" attention_bias: true num_key_value_heads: 1 }",
      "model { family: \"qwen2\" num_key_value_heads: 2 tie_word_embeddings: true }",
      "model { family: \"qwen3\" " + windows + "}",
      "model { family: \"smollm3\" no_rope_layers: 0 no_rope_layers: 1 }",
      "model { family: \"gemma2\" " + windows + "attn_logit_softcapping: 2 final_logit_softcapping: 3 }",
      "model { family: \"gemma3_text\" tie_word_embeddings: true " + windows + "}",
      "model { family: \"gpt2\" num_key_value_heads: 8 tie_word_embeddings: true }",
      "model { family: \"gpt_neox\" num_key_value_heads: 8 partial_rotary_factor: 0.5 }",
      "model { family: \"gpt_neox\" num_key_value_heads: 8 attention_bias: false use_parallel_residual: false }",
      "model { family: \"olmo2\" num_key_value_heads: 1 }",
      "model { family: \"cohere\" use_qk_norm: true num_key_value_heads: 2 logit_scale: 0.5 }",
      "model { family: \"phi\" }",
      "model { family: \"nemotron\" }",
  };
  double worst = 0;
  for (const std::string& family : families) {
    for (const char* axis :
         {"tensor", "context_method: RING context", "context_method: GATHER context", "data_shard"}) {
      worst = std::max(worst, Compare(family, absl::StrCat("parallel { ", axis, ": ", World(), " }")));
    }
    worst = std::max(worst, Compare(family + kDocuments,
                                    absl::StrCat("recompute { policy: SELECTIVE keep: \"attention\" keep: \"qkv\" } "
                                                 "parallel { pipeline: 2 tensor: ",
                                                 World() / 2, " pipeline_schedule: \"ZB-H1\" }")));
  }
  if (TestProcess().rank() == 0) std::printf("largest gradient error %.2g\n", worst);
}

constexpr char
    kQwenExperts[] = "model { family: \"qwen3_moe\" num_experts: 8 num_experts_per_tok: 2 moe_intermediate_size: 32 }",
    kGlmExperts[] =
        "model { family: \"glm4_moe\" num_experts: 8 num_experts_per_tok: 3 moe_intermediate_size: 24 n_group: "
        "2 n_shared_experts: 1 first_k_dense_replace: 1 num_hidden_layers: 3 partial_rotary_factor: 1 }",
    // With more experts than tokens most have none, and so have ranks.
    kManyExperts[] = "model { family: \"qwen3_moe\" num_experts: 64 num_experts_per_tok: 1 moe_intermediate_size: 16 }";

// Experts cut over ranks, beside every other axis, sharding level, schedule and recomputation.
TEST(Axes, Experts) {
  REQUIRE_RANKS(World() == 2 || World() == 4 || World() == 8, "expert ranks of 2 and 4");
  const int half = World() / 2;
  std::vector<std::string> layouts;
  const auto add = [&](const auto&... parts) { layouts.push_back(absl::StrCat(parts...)); };
  if (World() <= 4) {
    add("parallel { expert: ", World(), " data_shard: ", World(), " }");
    add("parallel { tensor: ", World(), " }");
    add("parallel { expert: 2 tensor: ", World(), " } recompute { policy: BLOCK }");
    for (const char* method : {"GATHER", "RING"})
      add("parallel { expert: 2 context: ", World(), " context_method: ", method, " }");
  }
  if (World() >= 4) {
    for (const char* level : {"NONE", "OPTIMIZER", "GRADIENTS", "PARAMETERS"})
      add("parallel { expert: 2 tensor: 2 data_shard: ", half, " shard: ", level, " }");
    for (const char* schedule : {"1F1B", "ZB-H1"}) {
      add("recompute { policy: SELECTIVE keep: \"attention\" } parallel { expert: ", half, " tensor: 2 pipeline: 2 ",
          World() == 8 ? "context: 2 " : "", "pipeline_schedule: \"", schedule, "\" }");
    }
    add("parallel { expert: ", half, " pipeline: 2 pipeline_schedule: \"ZB-V\" }");
    add("parallel { expert: 2 data_replicate: 2 data_shard: ", half, " reduce_gradients: LAST_MICROBATCH }");
  }
  double worst = 0;
  for (const std::string& layout : layouts) {
    worst = std::max(worst, Compare(kQwenExperts, layout));
    if (absl::StrContains(layout, "tensor") || World() == 2) worst = std::max(worst, Compare(kGlmExperts, layout));
    if (World() <= 4) worst = std::max(worst, Compare(kManyExperts, layout));
    worst =
        std::max(worst, Compare(absl::StrCat(kQwenExperts, " loss { router_aux_loss: 2 router_z_loss: 0.1 }"), layout));
  }
  if (TestProcess().rank() == 0) std::printf("largest gradient error %.2g\n", worst);
}

// All tokens to one expert, whose bias no score outweighs: others, and the ranks that hold only them, have nothing to
// do.
TEST(Axes, AllTokensToOneExpert) {
  REQUIRE_RANKS(World() == 2 || World() == 4, "expert ranks of 2 and 4");
  constexpr char kNumbers[] =
      "model { family: \"glm4_moe\" num_experts: 8 num_experts_per_tok: 1 moe_intermediate_size: 24 norm_topk_prob: "
      "false "
      "partial_rotary_factor: 1 }";
  const Prepare prepare = [](TinyRun& run) {
    run.Change("e_score_correction_bias", [](const TensorPart& part) {
      for (int64_t i = 0; i < part.values.numel(); ++i) {
        if (part.rectangle.offset[0] + i == 5) part.values[i].fill_(100);
      }
    });
  };
  TinyRun alone({kNumbers}, /*alone=*/true);
  const Trajectory reference = Train(alone, prepare);
  for (const std::string& layout :
       {absl::StrCat("parallel { expert: ", World(), " shard: PARAMETERS }"),
        absl::StrCat("parallel { expert: 2 tensor: ", World(), " } recompute { policy: BLOCK }"),
        absl::StrCat("parallel { expert: ", World() / 2, " pipeline: 2 pipeline_schedule: \"ZB-H1\" }")}) {
    SCOPED_TRACE(layout);
    TinyRun run({kNumbers, layout});
    ExpectSame(Train(run, prepare), reference);
    // Of experts' stacked matrices only the one's rows have a gradient.
    int stacked = 0;
    for (const auto& [name, gradient] : reference.gradients) {
      if (!absl::StrContains(name, "experts.")) continue;
      ++stacked;
      EXPECT_EQ(TensorNorm(gradient.chunk(8)[4]), 0) << name;
      EXPECT_GT(TensorNorm(gradient.chunk(8)[5]), 0) << name;
    }
    EXPECT_GE(stacked, 2);
  }
}

// Scores next to a tie: what was chosen is kept, so that computing a block again gives the same bits.
TEST(Axes, NearTiesUnderRecomputation) {
  REQUIRE_RANKS(World() == 2 || World() == 4, "expert ranks of 2 and 4");
  const Prepare prepare = [](TinyRun& run) {
    run.Change("mlp.gate.weight", [](const TensorPart& part) { part.values.mul_(1e-6); });
  };
  for (const std::string& layout : {absl::StrCat("parallel { expert: ", World(), " shard: PARAMETERS }"),
                                    absl::StrCat("parallel { expert: 2 tensor: ", World(), " }")}) {
    SCOPED_TRACE(layout);
    TinyRun plain({kQwenExperts, layout}), again({kQwenExperts, layout, "recompute { policy: BLOCK }"});
    const Trajectory expected = Train(plain, prepare), got = Train(again, prepare);
    for (const auto& [name, gradient] : expected.gradients)
      EXPECT_TRUE(at::equal(got.gradients.at(name), gradient)) << name;
    EXPECT_EQ(got.losses, expected.losses);
  }
}

// Every mesh of this many ranks whose axes are 1, 2 or 4; of 16 ranks, those that use three axes or more.
std::vector<std::string> Meshes() {
  if (World() == 16) {
    return {"tensor: 2 pipeline: 2 context: 2 data_shard: 2", "tensor: 2 pipeline: 2 context: 2 data_replicate: 2",
            "tensor: 4 pipeline: 2 context: 2", "tensor: 2 pipeline: 4 context: 2", "tensor: 2 pipeline: 2 context: 4"};
  }
  std::vector<std::string> meshes;
  for (int tensor : {1, 2, 4}) {
    for (int pipeline : {1, 2, 4}) {
      for (int context : {1, 2, 4}) {
        for (int replicate : {1, 2}) {
          const int others = tensor * pipeline * context * replicate;
          if (World() % others != 0 || World() / others > 4) continue;
          meshes.push_back(absl::StrCat("tensor: ", tensor, " pipeline: ", pipeline, " context: ", context,
                                        " data_replicate: ", replicate));
        }
      }
    }
  }
  return meshes;
}

TEST(Axes, TogetherWithEveryOption) {
  REQUIRE_RANKS(World() > 1, "one rank shares nothing");
  const std::vector<std::string> meshes = Meshes();
  const std::vector<std::vector<std::string>> options = {
      meshes,
      {"", kTied},
      {"recompute { policy: NONE }",
       "recompute { policy: SELECTIVE keep: \"attention\" keep: \"qkv\" keep: \"gate_up\" }",
       "recompute { policy: BLOCK }"},
      {"shard: NONE", "shard: OPTIMIZER", "shard: GRADIENTS", "shard: PARAMETERS"},
      {"context_method: GATHER", "context_method: RING"},
      {"pipeline_schedule: \"1F1B\"", "pipeline_schedule: \"GPipe\"", "pipeline_schedule: \"ZB-H1\""},
      {"", kDocuments},
      {"reduce_gradients: EVERY_MICROBATCH", "reduce_gradients: LAST_MICROBATCH"}};
  std::vector<int> choices;
  for (const auto& option : options) choices.push_back(static_cast<int>(option.size()));
  const std::vector<std::vector<int>> rows = CoveringSet(choices);
  double worst = 0;
  for (const std::vector<int>& r : rows) {
    const auto setting = [&](size_t i) { return options[i][r[i]]; };
    const std::string numbers = setting(1) + setting(6);
    worst = std::max(worst, Compare(numbers, absl::StrCat(setting(2), " parallel { ", setting(0), " ", setting(3), " ",
                                                          setting(4), " ", setting(5), " ", setting(7), " }")));
  }
  EXPECT_GE(rows.size(), 12u);
  if (TestProcess().rank() == 0) std::printf("%zu layouts; largest gradient error %.2g\n", rows.size(), worst);
}

TEST(Axes, SchedulesGiveTheSameGradients) {
  REQUIRE_RANKS(World() == 2 || World() == 4, "2-layer models have 4 units");
  const std::string blocks = "num_hidden_layers: 6 ";
  for (const std::string& schedule :
       {std::string("pipeline_schedule: \"GPipe\""), std::string("pipeline_schedule: \"1F1B\""),
        std::string("pipeline_schedule: \"Interleaved1F1B\""), std::string("pipeline_schedule: \"ZB-H1\""),
        std::string("pipeline_schedule: \"ZB-V\"")}) {
    for (const char* more : {"", " reduce_gradients: LAST_MICROBATCH"}) {
      for (const char* tied : {"", "tie_word_embeddings: true "}) {
        const std::string numbers = absl::StrCat("model { ", blocks, tied, "}");
        Compare(numbers, absl::StrCat("parallel { pipeline: ", World(), " ", schedule, more, " }"));
        if (World() == 4)
          Compare(numbers, absl::StrCat("parallel { pipeline: 2 ", schedule, more, " shard: PARAMETERS }"));
      }
    }
  }
}

TEST(Axes, Bfloat16IsAtMostTwiceAsFarFromFloat32AsOnOneRank) {
  REQUIRE_RANKS(World() == 2 || World() == 4, "each axis of 2 or 4 ranks");
  const std::string bf16 = "precision { compute: BF16 } micro_batch_size: 2";
  TinyRun alone({bf16}, /*alone=*/true);
  const Tensors by_one = Train(alone).gradients;
  const Trajectory& exact = Reference("");
  for (const char* axis : {"tensor", "pipeline", "context", "context_method: RING context"}) {
    TinyRun run({bf16, absl::StrCat("parallel { ", axis, ": ", World(), " }")});
    const Tensors gradients = Train(run).gradients;
    for (const auto& [name, expected] : exact.gradients) {
      EXPECT_LE(RelativeDistance(gradients.at(name), expected), 2 * RelativeDistance(by_one.at(name), expected))
          << axis << ": " << name;
    }
  }
}

// ---- Work ----

// What one rank sends over the tensor axis in a step, with T tokens in a microbatch of `hidden` wide rows.
TEST(Axes, TensorParallelSendsWhatTheFormulaSays) {
  REQUIRE_RANKS(World() > 1 && World() <= 8, "8 heads");
  TinyRun run({"model { num_hidden_layers: 3 } micro_batch_size: 4 kernels { loss_chunk_tokens: 50 }",
               absl::StrCat("parallel { tensor: ", World(), " }")});
  run.Initialize();
  run.Step();
  run.mesh().log().ResetCounts();
  run.ForwardBackward(1);
  const auto counts = run.mesh().log().counts();
  const int64_t n = World(), microbatches = 4, layers = 3, tokens = 4 * 32, hidden = 64, chunks = 3;
  const int64_t rows = tokens / n * hidden * 4 * (n - 1);  // one rank's rows to each of the others
  // Forward: 2 gathers and 2 sums per block, one sum after the embedding, one gather before the head and one sum of
  // its input's gradient. Backward: per block 4 gathers (two of what was not saved) and 2 sums; one gather for the
  // embedding.
  const int64_t gathers = microbatches * (layers * (2 + 4) + 2), sums = microbatches * (layers * (2 + 2) + 2);
  // The head's statistics: two numbers per token.
  const int64_t statistics_bytes = microbatches * 2 * tokens * 4 * (n - 1);
  const auto gather = counts.at({"tensor", "all_gather"}), sum = counts.at({"tensor", "reduce_scatter"});
  EXPECT_EQ(gather.calls, gathers + microbatches * chunks);
  EXPECT_EQ(gather.bytes, gathers * rows + statistics_bytes);
  EXPECT_EQ(sum.calls, sums);
  EXPECT_EQ(sum.bytes, sums * rows);
  // Gradients of the norms, once per step and buffer that has some.
  const int64_t copies = n > 4 ? 1 : 0;  // keys and values have 4 heads
  EXPECT_EQ(counts.at({"tensor", "all_reduce"}).calls, layers + 1);
  if (copies > 0) {
    EXPECT_EQ(counts.at({"tensor(same of 4 heads)", "all_reduce"}).calls, layers);
  }
}

// Logits of the whole vocabulary never exist: 4,096 tokens x 65,536 ids would take 1 GiB.
TEST(Axes, AHeadLargerThanTheMemoryItMayUse) {
  REQUIRE_RANKS(World() == 2, "two ranks share the vocabulary");
  TinyRun run(
      {"model { vocab_size: 65536 } data { sequence_length: 32 } micro_batch_size: 16 "
       "kernels { loss_chunk_tokens: 64 }",
       "parallel { tensor: 2 }"});
  run.Initialize();
  ResetCpuMemoryPeak();
  const int64_t before = GetCpuMemory().in_use_bytes;
  EXPECT_TRUE(std::isfinite(run.ForwardBackward(1)));
  const int64_t logits = int64_t{16} * 32 * 65536 * 4;  // 128 MiB
  EXPECT_LT(GetCpuMemory().peak_bytes - before, logits / 2);
}

}  // namespace
}  // namespace trireme
