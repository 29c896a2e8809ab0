// What a config must satisfy before anything starts, and what follows from one that does.
#include "trainer/recipe/recipe.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "models/spec/parameters.h"

namespace trireme {
namespace {

constexpr char kConfig[] = R"(
  model { num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 100 }
  data { source { path: "corpus" } sequence_length: 128 }
  global_batch_size: 12
  micro_batch_size: 2
  optimizer { adamw { learning_rate: 1e-3 } }
  train_for { steps: 100 }
)";

RunConfig Parse(const std::string& text) {
  RunConfig config;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &config)) << text;
  return config;
}
// kConfig with the fields of `change` merged over it.
RunConfig Config(const std::string& change = "") {
  RunConfig config = Parse(kConfig);
  config.MergeFrom(Parse(change));
  return config;
}

absl::StatusOr<Recipe> Make(const RunConfig& config, int world = 1, const CorpusFacts& facts = {211, 1000}) {
  return MakeRecipe(config, world, BuiltInFamilies(), {"cpu", "math"}, facts);
}
Recipe MustMake(const std::string& change = "", int world = 1) {
  const absl::StatusOr<Recipe> recipe = Make(Config(change), world);
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return recipe.value_or(Recipe());
}

// Refused for exactly one reason, which reads like this.
void ExpectRefused(const RunConfig& config, const std::string& reason, int world = 1,
                   const CorpusFacts& facts = {211, 1000}) {
  const absl::Status status = Make(config, world, facts).status();
  ASSERT_FALSE(status.ok()) << "accepted; expected: " << reason;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig);
  EXPECT_NE(status.message().find(reason), std::string::npos) << status;
  EXPECT_NE(status.message().find("the config does not fit:\n  "), std::string::npos) << "not one problem: " << status;
}
void ExpectRefused(const std::string& change, const std::string& reason, int world = 1) {
  ExpectRefused(Config(change), reason, world);
}

TEST(RecipeTest, FillsInWhatIsLeftOpen) {
  const Recipe recipe = MustMake("", 3);
  EXPECT_EQ(recipe.engine.model.vocab_size, 211) << "the corpus's tokenizer says";
  EXPECT_EQ(recipe.engine.model.max_positions, 128);
  EXPECT_EQ(recipe.engine.mesh[Axis::kDataShard], 3);
  EXPECT_EQ(recipe.config.parallel().data_shard(), 3);
  EXPECT_EQ(recipe.num_microbatches, 2);  // 12 / (2 x 3).
  EXPECT_EQ(recipe.tokens_per_step, 12 * 128);
  EXPECT_EQ(recipe.total_steps, 100);
}

TEST(RecipeTest, ReplicasTakeTheirRanks) {
  const Recipe recipe = MustMake("parallel { data_replicate: 2 }", 6);
  EXPECT_EQ(recipe.engine.mesh[Axis::kDataShard], 3);
  EXPECT_EQ(recipe.engine.mesh[Axis::kDataReplicate], 2);
  EXPECT_EQ(recipe.engine.mesh.world(), 6);
  EXPECT_EQ(recipe.num_microbatches, 1);
}

std::string WarningsOf(const std::string& change) {
  return absl::StrJoin(SettingsWithoutEffect(Config(change), MustMake(change)), "\n");
}

TEST(RecipeTest, WarnsOfPairsThatDoNotGoTogether) {
  EXPECT_EQ(WarningsOf("lr_schedule { warmup_steps: 99 cosine {} }"), "");
  for (const char* shape : {"", "constant {}", "cosine {}", "linear {}"})
    EXPECT_NE(WarningsOf(absl::StrCat("lr_schedule { warmup_steps: 400 ", shape, " }"))
                  .find("warmup_steps: 400 of the run's 100 steps: the learning rate never reaches its peak, but "
                        "0.00025 of 0.001"),
              std::string::npos)
        << shape;
  for (const auto& [change, warning] :
       {std::pair<const char*, const char*>{"trace { steps: 101 }", "trace.steps: 101 is beyond"},
        {"evaluation { max_sequences: 3 }", "evaluation.max_sequences: has no effect without evaluation.every_steps"},
        {"non_finite { max_consecutive_skips: 3 }", "non_finite.max_consecutive_skips: has no effect"},
        {"recompute { offload: true }", "recompute.offload: has no effect"},
        {"parallel { context_method: RING }", "parallel.context_method: has no effect"},
        {"parallel { pipeline_schedule: '1F1B' }", "parallel.pipeline_schedule: has no effect"},
        {"data { conversations { validation_fraction: 0.1 } }", "nothing is evaluated on them"},
        {"data { document_mask: false conversations {} }", "data.document_mask: false: has no effect"}})
    EXPECT_NE(WarningsOf(change).find(warning), std::string::npos) << change;
}

TEST(RecipeTest, LengthOfTheRun) {
  EXPECT_EQ(MustMake("train_for { tokens: 1536 }").total_steps, 1);
  EXPECT_EQ(MustMake("train_for { tokens: 1537 }").total_steps, 2);
  EXPECT_EQ(MustMake("train_for { epochs: 0.5 }").total_steps, 42);  // 500 windows of 12 a step, rounded up.
}

TEST(RecipeTest, MeshAndRanks) {
  ExpectRefused("parallel { data_shard: 2 }", "data_shard 2 x the other axes' 1 = 2 ranks, but the job has 3", 3);
  ExpectRefused(
      "parallel { data_replicate: 2 }",
      "the other axes take 2 ranks, which does not divide the 3 ranks of this job\n    the closest layout of 3 "
      "ranks that fits: parallel { data_replicate: 3 }",
      3);
  ExpectRefused("parallel { data_shard: 2 } global_batch_size: 8",
                "or set data_shard: 0\n    no layout of 7 ranks fits this model and global_batch_size", 7);
  ExpectRefused("parallel { data_replicate: 0 }", "parallel.data_replicate: is 0; give 1 or more");
  ExpectRefused("parallel { data_shard: -1 }", "parallel.data_shard: is -1");
  ExpectRefused("parallel { tensor: -2 }", "parallel.tensor: is -2");
}

TEST(RecipeTest, LayoutsThatDoNotFitComeWithTheClosestThatDoes) {
  const std::string closest = "\n    the closest layout of 3 ranks that fits: parallel { data_shard: 3 }";
  ExpectRefused("parallel { context: 3 }",
                "parallel.context: data.sequence_length 128 is not a multiple of 6: each rank takes two of 6 equal "
                "chunks" +
                    closest,
                3);
  ExpectRefused("parallel { pipeline: 8 }", "8 ranks x 1 stages need 8 units, but the model has 2 blocks", 8);
  ExpectRefused("parallel { pipeline: 2 pipeline_schedule: \"2F2B\" }", "2F2B", 2);
  ExpectRefused("parallel { pipeline: 2 pipeline_blocks: 3 pipeline_blocks: 1 }",
                "pipeline_blocks: [3, 1] must be 2 numbers, one per stage, that sum to the model's 2 blocks", 2);
  // Three things keep 8 tensor ranks from it; four take the heads.
  const absl::Status status = Make(Config("parallel { tensor: 8 }"), 8).status();
  for (const char* reason :
       {"8 does not divide model.num_attention_heads 4", "8 does not divide model.intermediate_size 100",
        "closest layout of 8 ranks that fits: parallel { tensor: 4 data_shard: 2 }"})
    EXPECT_NE(status.message().find(reason), std::string::npos) << status;
}

TEST(RecipeTest, StagesAreBalancedByCostUnlessGiven) {
  const Recipe balanced = MustMake("model { num_hidden_layers: 6 } parallel { pipeline: 2 }", 2);
  EXPECT_EQ(balanced.engine.stage_units, (std::vector<int>{4, 4}));
  // A head as costly as several blocks stands with fewer of them.
  const Recipe heavy = MustMake("model { num_hidden_layers: 6 vocab_size: 2000 } parallel { pipeline: 2 }", 2);
  EXPECT_GT(heavy.engine.stage_units[0], heavy.engine.stage_units[1]);
  // Frozen weights do not change what a forward pass costs: the head is most of this model.
  const Recipe frozen = MustMake("model { vocab_size: 50000 } parallel { pipeline: 2 } adapter { r: 2 }", 2);
  EXPECT_EQ(frozen.engine.stage_units, (std::vector<int>{3, 1}));
  const Recipe given =
      MustMake("model { num_hidden_layers: 6 } parallel { pipeline: 2 pipeline_blocks: 5 pipeline_blocks: 1 }", 2);
  EXPECT_EQ(given.engine.stage_units, (std::vector<int>{6, 2}));
}

// Whoever starts jobs tells this from a mistake in the config.
TEST(RecipeTest, TheWrongNumberOfRanksHasItsOwnExitCode) {
  EXPECT_TRUE(Make(Config("launch { expected_ranks: 3 }"), 3).ok());
  const absl::Status status = Make(Config("launch { expected_ranks: 4 }"), 3).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kWorldSize);
  EXPECT_NE(status.message().find("launch.expected_ranks: 4, but the job has 3 ranks"), std::string::npos) << status;
}

TEST(RecipeTest, Batches) {
  ExpectRefused("global_batch_size: 10", "10 is not a multiple of micro_batch_size 2 x 3 data-parallel ranks = 6", 3);
  ExpectRefused("micro_batch_size: 0", "micro_batch_size: is 0");
  ExpectRefused("global_batch_size: -3", "global_batch_size: not set or not positive");
  RunConfig config = Config();
  config.clear_global_batch_size();
  ExpectRefused(config, "global_batch_size: not set");
  config = Config("model { max_position_embeddings: 64 }");
  ExpectRefused(config, "data.sequence_length: 128 exceeds model.max_position_embeddings 64");
}

TEST(RecipeTest, SequenceLengthMustBeGiven) {
  RunConfig config = Config("model { max_position_embeddings: 64 }");
  config.mutable_data()->clear_sequence_length();
  ExpectRefused(config, "data.sequence_length: not set");
  config.mutable_data()->set_sequence_length(0);
  ExpectRefused(config, "data.sequence_length: must be positive");
}

TEST(RecipeTest, Model) {
  ExpectRefused("model { family: \"gpt\" }", "no family is called \"gpt\"; known: llama");
  ExpectRefused("model { num_attention_heads: 6 num_key_value_heads: 3 }", "6 does not divide hidden_size 64");
  ExpectRefused("model { num_key_value_heads: 3 }", "num_key_value_heads: 3 does not divide num_attention_heads 4");
  ExpectRefused("model { vocab_size: 200 }", "model.vocab_size: 200 is smaller than the corpus's tokenizer");
  ExpectRefused(Config(), "model.vocab_size: not set", 1, {0, 1000});
  EXPECT_TRUE(Make(Config("model { vocab_size: 256 }")).ok()) << "rows to spare are fine";
}

TEST(RecipeTest, Optimizers) {
  RunConfig config = Config();
  config.clear_optimizer();
  ExpectRefused(config, "optimizer: no rule");
  ExpectRefused("optimizer { adamw { beta1: 1 } }", "optimizer.adamw.beta1: is 1; must be in [0, 1)");
  ExpectRefused("optimizer { adamw { beta2: -0.1 } }", "optimizer.adamw.beta2: is -0.1");
  ExpectRefused("optimizer { adamw { beta2: nan } }", "optimizer.adamw.beta2: is nan");
  ExpectRefused("optimizer { adamw { eps: 0 } }", "optimizer.adamw.eps: is 0");
  ExpectRefused("optimizer { adamw { learning_rate: -1 } }", "optimizer.adamw.learning_rate: is -1");
  ExpectRefused("optimizer { adamw { learning_rate: inf } }", "optimizer.adamw.learning_rate: is inf");
  ExpectRefused("optimizer { adamw { weight_decay: -1 } }", "optimizer.adamw.weight_decay: is -1");
  ExpectRefused("optimizer { sgd { momentum: 1 } }", "optimizer.sgd.momentum: is 1");
  ExpectRefused("optimizer { sgd { learning_rate: nan } }", "optimizer.sgd.learning_rate: is nan");
  ExpectRefused("optimizer { sgd { weight_decay: -1 } }", "optimizer.sgd.weight_decay: is -1");
}

TEST(RecipeTest, Precision) {
  ExpectRefused("precision { master_weights: false }", "precision.master_weights: off needs precision.compute: BF16");
  ExpectRefused("precision { master_weights: false compute: BF16 } optimizer { sgd {} }",
                "precision.master_weights: off needs optimizer.adamw");
  EXPECT_TRUE(Make(Config("precision { master_weights: false compute: BF16 }")).ok());
}

TEST(RecipeTest, Schedules) {
  ExpectRefused("lr_schedule { warmup_steps: -1 }", "lr_schedule.warmup_steps: is -1");
  ExpectRefused("lr_schedule { clip_grad_norm: -1 }", "lr_schedule.clip_grad_norm: is -1");
  ExpectRefused("lr_schedule { clip_grad_norm: nan }", "lr_schedule.clip_grad_norm: is nan");
  ExpectRefused("lr_schedule { cosine { min_ratio: -1 } }", "lr_schedule.cosine.min_ratio: is -1");
  ExpectRefused("lr_schedule { linear { min_ratio: 5 } }", "lr_schedule.linear.min_ratio: is 5");
  ExpectRefused("train_for { epochs: nan }", "train_for.epochs: is nan");
  ExpectRefused("train_for { epochs: 1e300 }", "train_for.epochs: is 1e+300");
  ExpectRefused("lr_schedule { wsd {} }", "lr_schedule.wsd.decay_steps: not set");
  ExpectRefused("lr_schedule { warmup_steps: 60 wsd { decay_steps: 41 } }",
                "warmup_steps 60 + wsd.decay_steps 41 exceed the run's 100 steps");
  EXPECT_TRUE(Make(Config("lr_schedule { warmup_steps: 60 wsd { decay_steps: 40 } }")).ok());
  ExpectRefused("train_for { steps: 0 }", "train_for: comes to 0 steps");
  RunConfig config = Config();
  config.clear_train_for();
  ExpectRefused(config, "train_for: not set");
}

TEST(RecipeTest, TheRest) {
  ExpectRefused("loss { z_loss: -1 }", "loss.z_loss: is -1");
  ExpectRefused("loss { z_loss: nan }", "loss.z_loss: is nan");
  ExpectRefused("trace { steps: 0 }", "trace.steps: 0 is no step");
  ExpectRefused("micro_batch_size: 200000000 global_batch_size: 200000000",
                "micro_batch_size x data.sequence_length: 200000000 x ");
  ExpectRefused("evaluation { every_steps: -1 }", "evaluation.every_steps: is -1");
  ExpectRefused("evaluation { max_sequences: -1 }", "evaluation.max_sequences: is -1");
  ExpectRefused("checkpoint { every_steps: -1 }", "checkpoint.every_steps: is -1");
  ExpectRefused("checkpoint { keep_last: -1 }", "checkpoint.keep_last: is -1");
  ExpectRefused("checkpoint { keep_best: true }", "checkpoint.keep_best: needs evaluation.every_steps");
  ExpectRefused("launch { watchdog_seconds: -1 }", "launch.watchdog_seconds: is -1");
  ExpectRefused("non_finite { max_consecutive_skips: -1 }", "non_finite.max_consecutive_skips: is -1");
  ExpectRefused("kernels { loss_chunk_tokens: 0 }", "kernels.loss_chunk_tokens");
  ExpectRefused("kernels { attention: \"fast\" }", "no implementation is called \"fast\"; there are: auto, cpu, math");
  ExpectRefused("data { prefetch_steps: 0 }", "data.prefetch_steps");
  ExpectRefused("logging { every_steps: 0 }", "logging.every_steps");
}

TEST(RecipeTest, RoutersOfExperts) {
  const std::string mixture =
      "model { family: \"qwen3_moe\" num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 32 } ";
  ExpectRefused(mixture + "loss { router_aux_loss: -1 }", "loss.router_aux_loss: is -1");
  ExpectRefused(mixture + "loss { router_z_loss: nan }", "loss.router_z_loss: is nan");
  ExpectRefused(mixture + "loss { router_z_loss: inf }", "loss.router_z_loss: is inf; give a finite number");
  ExpectRefused(mixture + "optimizer { router_bias_rate: -1 }", "optimizer.router_bias_rate: is -1");
  const auto with = [](const char* family, const char* fields) {
    return absl::StrCat("model { family: \"", family, "\" num_experts: 4 moe_intermediate_size: 32 ", fields, " } ");
  };
  const std::string corrected = with("glm4_moe", "num_experts_per_tok: 2");
  ExpectRefused(corrected + "optimizer { router_bias_rate: inf }", "optimizer.router_bias_rate: is inf");
  ExpectRefused(corrected + "optimizer { router_bias_rate: 1e30 }",
                "optimizer.router_bias_rate: is 1e+30; give at most");
  ExpectRefused("model { family: \"mixtral\" num_experts: 1000000000 num_experts_per_tok: 2 }",
                "model.num_experts: a layer has 1000000000 experts");
  ExpectRefused(with("qwen3_moe", "num_experts_per_tok: 99"), "model.num_experts_per_tok: is 99; give 1 to 4");
  ExpectRefused(with("qwen3_moe", "num_experts_per_tok: 2 decoder_sparse_step: 0"), "model.decoder_sparse_step: is 0");
  ExpectRefused(with("qwen3_moe", "num_experts_per_tok: 2 mlp_only_layers: -1"), "mlp_only_layers: names layer -1");
  ExpectRefused(with("glm4_moe", "num_experts_per_tok: 2 n_shared_experts: -1"), "model.n_shared_experts: is -1");
  ExpectRefused(with("glm4_moe", "num_experts_per_tok: 2 first_k_dense_replace: -1"), "first_k_dense_replace: is -1");
  ExpectRefused(with("qwen2_moe", "num_experts_per_tok: 2 shared_expert_intermediate_size: -8"),
                "model.shared_expert_intermediate_size: is -8");
  ExpectRefused(mixture + "optimizer { router_bias_rate: 1e-3 }",
                "optimizer.router_bias_rate: files of the family qwen3_moe have no place for a bias of experts");
  const std::string pooled = mixture + "loss { router_aux_loss: 1 router_aux_scope: STEP } ";
  ExpectRefused(pooled, "a step is 6 microbatches on 1 pipeline ranks");
  ExpectRefused(pooled + "micro_batch_size: 12 parallel { pipeline: 2 }", "a step is 1 microbatches on 2 pipeline", 2);
  EXPECT_TRUE(MustMake(pooled + "micro_batch_size: 12").engine.router.pooled);
  const RouterLossRule rule = MustMake(mixture + "loss { router_aux_loss: 1 router_z_loss: 0.5 }").engine.router;
  EXPECT_EQ(rule.evenness, 1.0 / 12) << "of a sequence";
  EXPECT_EQ(rule.z, 0.5);
}

TEST(RecipeTest, SeveralProblemsAtOnce) {
  const absl::Status status =
      Make(Config("global_batch_size: 7 loss { z_loss: -1 } model { num_key_value_heads: 3 } train_for { steps: 0 }"),
           2)
          .status();
  const std::string message(status.message());
  EXPECT_NE(message.find("the config has 4 problems:\n  "), std::string::npos) << message;
  for (const char* problem : {"global_batch_size: 7", "loss.z_loss", "num_key_value_heads: 3", "train_for: comes to"})
    EXPECT_NE(message.find(problem), std::string::npos) << problem;
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 4);
}

// ---- Learning rates ----

TEST(LearningRate, WarmsUpFromStepOne) {
  const Recipe recipe = MustMake("lr_schedule { warmup_steps: 10 }");
  EXPECT_DOUBLE_EQ(recipe.LearningRate(1), 1e-4);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(5), 5e-4);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(10), 1e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(11), 1e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(100), 1e-3) << "constant without a shape";
}

TEST(LearningRate, NoWarmUp) { EXPECT_DOUBLE_EQ(MustMake().LearningRate(1), 1e-3); }

TEST(LearningRate, Cosine) {
  const Recipe recipe = MustMake("lr_schedule { warmup_steps: 20 cosine { min_ratio: 0.1 } }");
  EXPECT_DOUBLE_EQ(recipe.LearningRate(20), 1e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(60), 1e-3 * 0.55);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(100), 1e-4);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(40), 1e-3 * (0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5))));
  for (int64_t step = 21; step <= 100; ++step) EXPECT_LT(recipe.LearningRate(step), recipe.LearningRate(step - 1));
}

TEST(LearningRate, Linear) {
  const Recipe recipe = MustMake("lr_schedule { warmup_steps: 20 linear { min_ratio: 0.5 } }");
  EXPECT_DOUBLE_EQ(recipe.LearningRate(60), 0.75e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(100), 0.5e-3);
  EXPECT_DOUBLE_EQ(MustMake("lr_schedule { linear {} }").LearningRate(100), 0);
}

TEST(LearningRate, WarmUpStableDecay) {
  const Recipe recipe = MustMake("lr_schedule { warmup_steps: 10 wsd { decay_steps: 40 min_ratio: 0.2 } }");
  EXPECT_DOUBLE_EQ(recipe.LearningRate(11), 1e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(60), 1e-3);
  EXPECT_LT(recipe.LearningRate(61), 1e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(80), 0.6e-3);
  EXPECT_DOUBLE_EQ(recipe.LearningRate(100), 0.2e-3);
}

// More in tests/oracle/optimizer_oracle.py, against Transformers and torch.
TEST(LearningRate, OtherShapes) {
  const Recipe restarts = MustMake("lr_schedule { cosine { min_ratio: 0.1 cycles: 4 } }");
  EXPECT_DOUBLE_EQ(restarts.LearningRate(25), 1e-3) << "back at the peak";
  EXPECT_LT(restarts.LearningRate(24), 0.11e-3);
  EXPECT_DOUBLE_EQ(restarts.LearningRate(100), 1e-4) << "and down at the end";
  EXPECT_DOUBLE_EQ(MustMake("lr_schedule { polynomial { power: 2 min_ratio: 0.2 } }").LearningRate(50), 0.4e-3);
  const Recipe root = MustMake("lr_schedule { warmup_steps: 10 inverse_sqrt {} }");
  EXPECT_DOUBLE_EQ(root.LearningRate(40), 0.5e-3);
  EXPECT_DOUBLE_EQ(MustMake("lr_schedule { inverse_sqrt { timescale: 20 } }").LearningRate(60), 0.5e-3);
}

TEST(LearningRate, ShapesThatCannotWorkAreRefused) {
  ExpectRefused("lr_schedule { plateau {} }", "lr_schedule.plateau: follows the evaluation loss");
  ExpectRefused("lr_schedule { plateau { factor: 1 } } evaluation { every_steps: 5 }", "plateau.factor: is 1");
  ExpectRefused("lr_schedule { cosine { cycles: 0 } }", "lr_schedule.cosine.cycles: is 0");
  ExpectRefused("lr_schedule { polynomial { power: -1 } }", "lr_schedule.polynomial.power: is -1");
  ExpectRefused("lr_schedule { inverse_sqrt { timescale: 0 } }", "lr_schedule.inverse_sqrt.timescale: is 0");
}

TEST(Optimization, RulesThatCannotWorkAreRefused) {
  ExpectRefused("optimizer { muon { learning_rate: 0 } }", "optimizer.muon.learning_rate: is 0");
  ExpectRefused("optimizer { muon { newton_schulz_steps: 100 } }", "newton_schulz_steps: is 100; must be in [1, 100)");
  ExpectRefused("optimizer { muon { newton_schulz_coefficient: 2 } }", "stands 1 time; give three numbers");
  ExpectRefused("optimizer { muon { adamw { eps: 0 } } }", "optimizer.muon.adamw.eps: is 0");
  ExpectRefused("optimizer { lion { beta1: 1 } }", "optimizer.lion.beta1: is 1");
  ExpectRefused("optimizer { groups { frozen: true } }", "optimizer.groups.names: not set");
  ExpectRefused("optimizer { groups { names: \"*.q_prj.weight\" } }",
                "\"*.q_prj.weight\" names no parameter that is trained; there are such as model.embed_tokens.weight, ");
  ExpectRefused("optimizer { groups { names: \"*\" frozen: true } }", "nothing is left to train");
}

TEST(Optimization, EightBitStates) {
  const std::string even = "model { intermediate_size: 128 tie_word_embeddings: true vocab_size: 256 } ",
                    rule = "optimizer { adamw { state: INT8 } } ";
  const auto bytes = [](const std::string& change) {
    const Recipe recipe = MustMake(change);
    return EstimateMemory(recipe.engine, recipe.optimizer_memory(), 0, c10::DeviceType::CPU).optimizer;
  };
  int64_t expected = 0;
  for (const ParameterSpec& spec : DecoderParameters(MustMake(even).engine.model))
    expected += Numel(spec) < 4096 ? 8 * Numel(spec) : 2 * Numel(spec) + 8 * Numel(spec) / 256;
  EXPECT_NEAR(static_cast<double>(bytes(even + rule)), static_cast<double>(expected), 8);
  ExpectRefused(
      "model { intermediate_size: 128 num_hidden_layers: 1 vocab_size: 256 } parallel { tensor: 2 } " + rule,
      "state: INT8 has a scale for each 256 elements of a parameter, but model.layers.0.self_attn.o_proj.weight "
      "is cut to [0:64, 0:32] on a rank",
      2);
}

TEST(Optimization, AveragesThatCannotWorkAreRefused) {
  ExpectRefused("ema { decay: 1 }", "ema.decay: is 1; must be in [0, 1)");
  ExpectRefused("ema { every_steps: 0 }", "ema.every_steps: is 0");
  ExpectRefused("evaluation { every_steps: 5 ema: true }", "evaluation.ema: there is no average");
}

TEST(Optimization, GroupsReachTheParametersThatTheyName) {
  const Recipe recipe = MustMake(
      "optimizer { groups { names: \"*.q_proj.weight\" learning_rate_factor: 0.5 } groups { names: \"*.1.*\" frozen: "
      "true } groups { names: \"*norm.weight\" weight_decay: 0.1 } }");
  for (const ParameterSpec& spec : DecoderParameters(recipe.engine.model)) {
    const bool q = spec.name.find("q_proj") != std::string::npos, second = spec.name.find(".1.") != std::string::npos;
    EXPECT_EQ(spec.rate, q ? 0.5 : 1) << spec.name;
    EXPECT_EQ(spec.trainable, q || !second) << spec.name << ": the first group that names it counts";
    EXPECT_EQ(spec.weight_decay.has_value(), !second && spec.name.find("norm") != std::string::npos) << spec.name;
  }
}

TEST(Optimization, MuonsMemoryIsHalfOfAdamWsAndRoomForItsMatrices) {
  const auto bytes = [](const std::string& rule) {
    const Recipe recipe = MustMake("model { tie_word_embeddings: true } " + rule);
    return EstimateMemory(recipe.engine, recipe.optimizer_memory(), 0, c10::DeviceType::CPU).optimizer;
  };
  int64_t matrices = 0, all = 0;
  for (const ParameterSpec& spec : DecoderParameters(MustMake("model { tie_word_embeddings: true }").engine.model)) {
    all += Numel(spec);
    if (spec.block_matrix) matrices += Numel(spec);
  }
  EXPECT_EQ(bytes(""), 8 * all);
  EXPECT_EQ(bytes("optimizer { lion {} }"), 4 * all);
  // Beside the state three blocks' directions, and the largest matrix's iteration: gate's.
  EXPECT_EQ(bytes("optimizer { muon {} }"),
            8 * all - 4 * matrices + 3 * 4 * matrices / 2 + 4 * (3 * 100 * 64 + 2 * 64 * 64));
}

TEST(LearningRate, WarmUpAsLongAsTheRun) {
  const Recipe recipe = MustMake("lr_schedule { warmup_steps: 100 cosine {} }");
  EXPECT_DOUBLE_EQ(recipe.LearningRate(100), 1e-3);
  const Recipe longer = MustMake("lr_schedule { warmup_steps: 200 cosine {} }");
  EXPECT_DOUBLE_EQ(longer.LearningRate(100), 0.5e-3);
}

// ---- What a checkpoint may be continued with ----

TEST(NumericChangesTest, LayoutAndReportingAreFree) {
  const RunConfig saved = Config("lr_schedule { cosine {} }");
  for (const char* change :
       {"parallel { shard: NONE data_replicate: 2 reduce_gradients: LAST_MICROBATCH }", "micro_batch_size: 1",
        "evaluation { every_steps: 5 }", "checkpoint { every_steps: 5 }", "resume: REQUIRED", "run_dir: \"elsewhere\"",
        "launch { expected_ranks: 2 }", "logging { every_steps: 7 }", "kernels { attention: \"math\" }",
        "recompute { policy: BLOCK }", "non_finite { policy: SKIP_UPDATE }",
        "data { prefetch_steps: 9 verify_checksums: true }"}) {
    RunConfig now = saved;
    now.MergeFrom(Parse(change));
    EXPECT_TRUE(NumericChanges(saved, now).empty()) << change << ": " << NumericChanges(saved, now)[0];
  }
  RunConfig moved = saved;
  moved.mutable_data()->mutable_source(0)->set_path("other/place");
  EXPECT_TRUE(NumericChanges(saved, moved).empty());
  // What conversations come to is compared by its digest.
  moved = saved;
  moved.mutable_data()->mutable_conversations()->add_path("more.jsonl");
  EXPECT_TRUE(NumericChanges(saved, moved).empty());
}

TEST(NumericChangesTest, WhatEntersTheNumbersIsNamed) {
  const RunConfig saved = Config("lr_schedule { cosine {} }");
  for (const auto& [change, field] : std::vector<std::pair<std::string, std::string>>{
           {"model { hidden_size: 128 }", "model.hidden_size: 64 -> 128"},
           {"global_batch_size: 24", "global_batch_size: 12 -> 24"},
           {"optimizer { adamw { learning_rate: 2e-3 } }", "optimizer.adamw.learning_rate"},
           {"optimizer { sgd {} }", "optimizer"},
           {"lr_schedule { warmup_steps: 5 }", "lr_schedule.warmup_steps"},
           {"lr_schedule { clip_grad_norm: 2 }", "lr_schedule.clip_grad_norm"},
           {"data { sequence_length: 64 }", "data.sequence_length"},
           {"data { document_mask: true }", "data.document_mask"},
           {"precision { compute: BF16 }", "precision.compute"},
           {"loss { z_loss: 1e-4 }", "loss.z_loss"},
           {"seed: 5", "seed"},
           {"train_for { steps: 200 }", "train_for.steps"}}) {
    RunConfig now = saved;
    now.MergeFrom(Parse(change));
    const std::vector<std::string> changes = NumericChanges(saved, now);
    ASSERT_FALSE(changes.empty()) << change;
    EXPECT_NE(changes[0].find(field), std::string::npos) << changes[0];
  }
}

TEST(NumericChangesTest, WithoutDecayARunMayBeProlonged) {
  const RunConfig saved = Config();
  RunConfig now = saved;
  now.mutable_train_for()->set_steps(500);
  EXPECT_TRUE(NumericChanges(saved, now).empty());
}

TEST(NumericChangesTest, AnotherSourceOrWeightIsAChange) {
  const RunConfig saved = Config();
  RunConfig now = saved;
  now.mutable_data()->mutable_source(0)->set_weight(2);
  EXPECT_FALSE(NumericChanges(saved, now).empty());
  now = saved;
  now.mutable_data()->add_source()->set_path("more");
  EXPECT_FALSE(NumericChanges(saved, now).empty());
}

}  // namespace
}  // namespace trireme
