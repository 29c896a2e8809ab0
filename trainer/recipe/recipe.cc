// Long because whatever can be wrong or idle in a config is looked at here, so that all of it is said at once.
#include "trainer/recipe/recipe.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "configs/config_loader.h"
#include "launch/base/log.h"
#include "models/engine/layout.h"
#include "models/formats/hf/peft.h"
#include "models/source/model_config.h"
#include "models/spec/parameter_groups.h"
#include "models/spec/parameters.h"
#include "parallel/layers/kept_results.h"
#include "trainer/recipe/optimization.h"
#include "trainer/recipe/plan_of_config.h"

namespace trireme {
namespace {

using Problems = std::vector<std::string>;

// Gives what keeps the axes from multiplying to the job's ranks; "" where they do.
std::string CheckParallel(const RunConfig& config, int world, Recipe* recipe, Problems* problems) {
  std::string mismatch;
  const ParallelConfig& p = config.parallel();
  const auto degree = [&](const char* field, int value) {
    if (value < 1) problems->push_back(absl::StrCat("parallel.", field, ": is ", value, "; give 1 or more"));
    return std::max(1, value);
  };
  recipe->engine.mesh[Axis::kTensor] = degree("tensor", p.tensor());
  recipe->engine.mesh[Axis::kPipeline] = degree("pipeline", p.pipeline());
  recipe->engine.mesh[Axis::kContext] = degree("context", p.context());
  recipe->engine.mesh[Axis::kDataReplicate] = degree("data_replicate", p.data_replicate());
  const int others = recipe->engine.mesh.world();
  int shard = p.data_shard();
  if (shard < 0) {
    problems->push_back(
        absl::StrCat("parallel.data_shard: is ", shard, "; give 0 for all ranks that the other axes leave"));
    shard = 0;
  }
  if (shard == 0) {
    shard = std::max(1, world / others);
    if (world % others != 0) {
      mismatch = absl::StrCat("parallel: the other axes take ", others, " ranks, which does not divide the ", world,
                              " ranks of this job");
    }
  } else if (shard * others != world) {
    mismatch = absl::StrCat("parallel: data_shard ", shard, " x the other axes' ", others, " = ", shard * others,
                            " ranks, but the job has ", world, "; start it with `mpirun -np ", shard * others,
                            "` or set data_shard: 0");
  }
  recipe->engine.mesh[Axis::kDataShard] = shard;
  recipe->engine.mesh.expert = degree("expert", p.expert());
  recipe->config.mutable_parallel()->set_data_shard(shard);
  return mismatch;
}

void CheckBatch(const RunConfig& config, Recipe* recipe, Problems* problems) {
  const int64_t data_ranks = recipe->engine.mesh[Axis::kDataReplicate] * recipe->engine.mesh[Axis::kDataShard];
  const int64_t length = config.data().sequence_length(), global = config.global_batch_size(),
                micro = config.micro_batch_size();
  if (length < 1)
    problems->push_back(
        absl::StrCat("data.sequence_length: ", config.data().has_sequence_length() ? "must be positive" : "not set",
                     "; give tokens per sequence"));
  if (micro < 1) problems->push_back(absl::StrCat("micro_batch_size: is ", micro, "; give 1 or more sequences"));
  constexpr int64_t kMaxTokens = int64_t{1} << 30;  // token numbers within a microbatch are of 32 bits
  if (micro >= 1 && length >= 1 && micro * length > kMaxTokens)
    problems->push_back(absl::StrCat("micro_batch_size x data.sequence_length: ", micro, " x ", length,
                                     " tokens are more than the ", kMaxTokens, " that a microbatch can have"));
  if (global < 1) {
    problems->push_back("global_batch_size: not set or not positive; give sequences per step over all ranks");
  } else if (micro >= 1) {
    recipe->num_microbatches = global / (micro * data_ranks);
  }
  recipe->tokens_per_step = std::max<int64_t>(1, global * length);
}

// The mesh against the model, once both are known: what does not fit, the closest mesh that does, and the stages.
// mismatch: what CheckParallel() found.
void CheckLayout(const RunConfig& config, int world, const std::string& mismatch, Recipe* recipe, Problems* problems) {
  std::vector<std::string> found =
      LayoutProblems(BatchOf(config), PipelineOf(config.parallel()), recipe->engine.model, recipe->engine.mesh);
  if (!mismatch.empty()) found = {mismatch};  // The mesh that was checked is not the job's.
  if (!found.empty()) {
    const std::string proposal =
        ProposeLayout(BatchOf(config), PipelineOf(config.parallel()), recipe->engine.model, recipe->engine.mesh, world);
    if (!proposal.empty()) {
      absl::StrAppend(&found.back(), "\n    the closest layout of ", world, " ranks that fits: ", proposal);
    } else if (!mismatch.empty()) {
      absl::StrAppend(&found.back(), "\n    no layout of ", world, " ranks fits this model and global_batch_size");
    }
    problems->insert(problems->end(), found.begin(), found.end());
    return;
  }
  if (recipe->num_microbatches < 1) return;
  absl::StatusOr<Schedule> schedule = MakePipelineSchedule(
      PipelineOf(config.parallel()), recipe->engine.mesh[Axis::kPipeline], static_cast<int>(recipe->num_microbatches));
  if (!schedule.ok()) {
    problems->push_back(std::string(schedule.status().message()));
    return;
  }
  recipe->engine.schedule = *std::move(schedule);
  absl::StatusOr<std::vector<int>> units =
      StageUnits(PipelineOf(config.parallel()), recipe->engine.model, config.data().sequence_length(),
                 recipe->engine.schedule.num_stages());
  if (units.ok()) {
    recipe->engine.stage_units = *std::move(units);
  } else {
    problems->push_back(std::string(units.status().message()));
  }
}

// How many steps the run has, which only a corpus may tell.
void CheckLength(const RunConfig& config, const CorpusFacts& facts, Recipe* recipe, Problems* problems) {
  const TrainFor& amount = config.train_for();
  const auto steps_for = [&](double tokens) {
    return static_cast<int64_t>(std::ceil(tokens / recipe->tokens_per_step));
  };
  switch (amount.amount_case()) {
    case TrainFor::kSteps:
      recipe->total_steps = amount.steps();
      break;
    case TrainFor::kTokens:
      recipe->total_steps = steps_for(static_cast<double>(amount.tokens()));
      break;
    case TrainFor::kEpochs:
      if (!(amount.epochs() > 0 && amount.epochs() <= 1e6)) {
        problems->push_back(absl::StrCat("train_for.epochs: is ", amount.epochs(), "; must be in (0, 1e6]"));
        return;
      }
      if (facts.num_windows == 0) return;  // No corpus to pass over: that is another problem's to say.
      recipe->total_steps =
          steps_for(amount.epochs() * static_cast<double>(facts.num_windows) * config.data().sequence_length());
      break;
    case TrainFor::AMOUNT_NOT_SET:
      problems->push_back("train_for: not set; write train_for { steps: 1000 }, { tokens: ... } or { epochs: ... }");
      return;
  }
  if (recipe->total_steps < 1)
    problems->push_back(absl::StrCat("train_for: comes to ", recipe->total_steps, " steps; give a positive amount"));
  const LrScheduleConfig& schedule = config.lr_schedule();
  if (schedule.has_wsd() && schedule.warmup_steps() + schedule.wsd().decay_steps() > recipe->total_steps) {
    problems->push_back(absl::StrCat("lr_schedule: warmup_steps ", schedule.warmup_steps(), " + wsd.decay_steps ",
                                     schedule.wsd().decay_steps(), " exceed the run's ", recipe->total_steps,
                                     " steps"));
  }
}

// What evens out the loads of experts. The family, the mesh and the batch are known.
void CheckRouters(const Recipe& recipe, Problems* problems) {
  const RunConfig& config = recipe.config;
  const LossConfig& loss = config.loss();
  const DecoderSpec& model = recipe.engine.model;
  const std::pair<const char*, double> fields[] = {
      {"loss.router_aux_loss", loss.router_aux_loss()},
      {"loss.router_z_loss", loss.router_z_loss()},
      {"optimizer.router_bias_rate", config.optimizer().router_bias_rate()}};
  if (!model.has_experts()) {
    for (const auto& [field, value] : fields) {
      if (value > 0) Warning(field, " has no effect: the model has no experts");
    }
    return;
  }
  if (config.optimizer().router_bias_rate() > 0 && !model.balances_experts())
    problems->push_back(absl::StrCat(
        "optimizer.router_bias_rate: files of the family ", config.model().family(),
        " have no place for a bias of experts (those of glm4_moe and deepseek_v3 have one), so it would be lost; "
        "leave it out, and set loss.router_aux_loss to even out loads"));
  if (config.optimizer().router_bias_rate() > 0 && config.has_adapter())
    problems->push_back(
        "optimizer.router_bias_rate: an adapter's files have no place for the biases of experts, so what they become "
        "would be lost; leave it or adapter out");
  if (loss.router_aux_loss() > 0 && loss.router_aux_scope() == LossConfig::STEP &&
      (recipe.num_microbatches > 1 || recipe.engine.mesh[Axis::kPipeline] > 1))
    problems->push_back(absl::StrCat(
        "loss.router_aux_scope: STEP is over what one forward pass sees, but here a step is ", recipe.num_microbatches,
        " microbatches on ", recipe.engine.mesh[Axis::kPipeline],
        " pipeline ranks; raise micro_batch_size to what a data-parallel rank has of global_batch_size and leave out "
        "parallel.pipeline, or use SEQUENCE, which does not depend on the layout"));
}

void CheckRest(const RunConfig& config, const std::vector<std::string>& attention_names, Problems* problems) {
  const auto not_negative = [&](const char* field, double value) {
    if (!(value >= 0)) problems->push_back(absl::StrCat(field, ": is ", value, "; must not be negative"));
    if (value > std::numeric_limits<double>::max())
      problems->push_back(absl::StrCat(field, ": is ", value, "; give a finite number"));
  };
  not_negative("loss.z_loss", config.loss().z_loss());
  not_negative("loss.router_aux_loss", config.loss().router_aux_loss());
  not_negative("loss.router_z_loss", config.loss().router_z_loss());
  not_negative("optimizer.router_bias_rate", config.optimizer().router_bias_rate());
  // Scores that biases are added to are below one.
  if (config.optimizer().router_bias_rate() > 1 && std::isfinite(config.optimizer().router_bias_rate()))
    problems->push_back(absl::StrCat("optimizer.router_bias_rate: is ", config.optimizer().router_bias_rate(),
                                     "; give at most 1, usually 1e-3"));
  not_negative("evaluation.every_steps", config.evaluation().every_steps());
  not_negative("evaluation.max_sequences", config.evaluation().max_sequences());
  not_negative("checkpoint.every_steps", config.checkpoint().every_steps());
  not_negative("checkpoint.keep_last", config.checkpoint().keep_last());
  not_negative("launch.watchdog_seconds", config.launch().watchdog_seconds());
  not_negative("parallel.pipeline_stages_per_rank", config.parallel().pipeline_stages_per_rank());
  for (const int64_t step : config.trace().steps()) {
    if (step < 1) problems->push_back(absl::StrCat("trace.steps: ", step, " is no step; they count from 1"));
  }
  not_negative("non_finite.max_consecutive_skips", config.non_finite().max_consecutive_skips());
  for (const std::string& name : config.recompute().keep()) {
    if (name != kKeepAttention && name != kKeepQkv && name != kKeepGateUp)
      problems->push_back(absl::StrCat("recompute.keep: nothing is called \"", name, "\"; there are: ", kKeepAttention,
                                       ", ", kKeepQkv, ", ", kKeepGateUp));
  }
  if (config.recompute().keep_size() > 0 && config.recompute().policy() != RecomputeConfig::SELECTIVE)
    problems->push_back("recompute.keep: needs recompute.policy: SELECTIVE");
  if (config.kernels().loss_chunk_tokens() < 1) problems->push_back("kernels.loss_chunk_tokens: must be positive");
  if (config.data().prefetch_steps() < 1) problems->push_back("data.prefetch_steps: must be positive");
  if (config.logging().every_steps() < 1) problems->push_back("logging.every_steps: must be positive");
  if (config.has_ema()) {
    if (!(config.ema().decay() >= 0 && config.ema().decay() < 1))
      problems->push_back(absl::StrCat("ema.decay: is ", config.ema().decay(), "; must be in [0, 1)"));
    if (config.ema().every_steps() < 1)
      problems->push_back(absl::StrCat("ema.every_steps: is ", config.ema().every_steps(), "; give 1 or more steps"));
  }
  if (config.evaluation().ema() && !config.has_ema())
    problems->push_back("evaluation.ema: there is no average; set ema { decay: 0.999 }, or leave it out");
  if (config.checkpoint().keep_best() && config.evaluation().every_steps() == 0) {
    problems->push_back("checkpoint.keep_best: needs evaluation.every_steps, or nothing says which is best");
  }
  const std::string& attention = config.kernels().attention();
  if (attention != "auto" &&
      std::find(attention_names.begin(), attention_names.end(), attention) == attention_names.end()) {
    problems->push_back(absl::StrCat("kernels.attention: no implementation is called \"", attention,
                                     "\"; there are: auto, ", absl::StrJoin(attention_names, ", ")));
  }
}

}  // namespace

absl::StatusOr<Recipe> MakeRecipe(const RunConfig& config, int world_size, const std::vector<ModelFamily>& families,
                                  const std::vector<std::string>& attention_names, const CorpusFacts& facts) {
  // The rest of the config may be right: it is the job that was started wrongly.
  if (config.launch().expected_ranks() > 0 && config.launch().expected_ranks() != world_size) {
    return Error(ExitCode::kWorldSize, "launch.expected_ranks: ", config.launch().expected_ranks(),
                 ", but the job has ", world_size, world_size == 1 ? " rank" : " ranks", "; start it with `mpirun -np ",
                 config.launch().expected_ranks(), "`, or change the field");
  }
  Problems problems;
  Recipe recipe;
  recipe.config = config;
  ModelConfig* model = recipe.config.mutable_model();
  if (const std::string ignored = ResolveModelConfig(families, model, &problems); !ignored.empty()) Info(ignored);
  if (!model->has_vocab_size() && facts.vocab_size > 0) model->set_vocab_size(static_cast<int32_t>(facts.vocab_size));
  // Samples in one sequence know nothing of each other.
  if (config.data().has_conversations()) recipe.config.mutable_data()->set_document_mask(true);
  if (!model->has_max_position_embeddings())
    model->set_max_position_embeddings(std::max(1, config.data().sequence_length()));
  PlanFrom(config, &recipe.engine);
  const std::string mismatch = CheckParallel(config, world_size, &recipe, &problems);
  CheckBatch(config, &recipe, &problems);
  absl::StatusOr<ModelFamily> family = FindFamily(families, model->family());
  if (family.ok()) {
    recipe.engine.model = Specify(*family, *model, &problems);
    CheckRouters(recipe, &problems);
    if (config.data().sequence_length() > recipe.engine.model.max_positions) {
      problems.push_back(absl::StrCat("data.sequence_length: ", config.data().sequence_length(),
                                      " exceeds model.max_position_embeddings ", recipe.engine.model.max_positions));
    }
    if (facts.vocab_size > recipe.engine.model.vocab_size) {
      problems.push_back(absl::StrCat("model.vocab_size: ", recipe.engine.model.vocab_size,
                                      " is smaller than the corpus's tokenizer, which has ", facts.vocab_size, " ids; ",
                                      model->has_from()
                                          ? "use the tokenizer that belongs to model.from, or give its embedding rows "
                                            "for the others (in Transformers: resize_token_embeddings)"
                                          : "raise it or leave it out"));
    }
  } else {
    problems.push_back(std::string(family.status().message()));
  }
  if (config.has_adapter()) ResolveAdapterConfig(recipe.config.mutable_adapter(), &problems);
  if (family.ok() && config.has_adapter())
    PutAdapter(recipe.config.adapter(), config.seed(), &recipe.engine.model, &problems);
  if (family.ok()) PutGroups(config.optimizer(), &recipe.engine.model, &problems);
  if (model->has_quantization() && model->has_from() && !config.has_adapter())
    problems.push_back(
        "model.quantization: quantized weights cannot be trained; set adapter { }, or give the model unquantized");
  if (config.adapter().init_lora_weights() == AdapterConfig::PISSA && recipe.config.model().has_quantization())
    problems.push_back(
        "adapter.init_lora_weights: PISSA takes its start from the exact weights; leave it or model.quantization out");
  if (family.ok() && config.global_batch_size() >= 1 && config.micro_batch_size() >= 1 &&
      config.data().sequence_length() >= 1) {
    CheckLayout(config, world_size, mismatch, &recipe, &problems);
  } else if (!mismatch.empty()) {
    problems.push_back(mismatch);
  }
  CheckOptimizer(config.optimizer(), config.precision(), &problems);
  if (problems.empty()) CheckMomentBlocks(config.optimizer(), recipe.engine, &problems);
  CheckSchedule(config.lr_schedule(), config.evaluation(), &problems);
  CheckLength(config, facts, &recipe, &problems);
  CheckRest(config, attention_names, &problems);
  if (problems.empty()) return recipe;
  return Error(ExitCode::kConfig,
               problems.size() == 1 ? "the config does not fit:\n  "
                                    : absl::StrCat("the config has ", problems.size(), " problems:\n  "),
               absl::StrJoin(problems, "\n  "));
}

absl::Status CheckOrigin(const RunConfig& config) {
  if (config.model().has_from() || !(config.has_adapter() || config.model().has_quantization()))
    return absl::OkStatus();
  return Error(ExitCode::kConfig, config.has_adapter() ? "adapter" : "model.quantization",
               ": the model has random weights, which no file holds, so what is trained on them could not be opened "
               "again; set model.from (`trireme bench` measures speed without it)");
}

std::vector<std::string> SettingsWithoutEffect(const RunConfig& config, const Recipe& recipe) {
  std::vector<std::string> found;
  const int64_t steps = recipe.total_steps, warmup = config.lr_schedule().warmup_steps();
  const auto add = [&found](const auto&... parts) { found.push_back(absl::StrCat(parts...)); };
  if (warmup >= steps)
    add("lr_schedule.warmup_steps: ", warmup, " of the run's ", steps, " steps: ",
        warmup == steps ? "the learning rate reaches its peak at the last one"
                        : absl::StrCat("the learning rate never reaches its peak, but ", recipe.LearningRate(steps),
                                       " of ", recipe.peak_learning_rate()));
  for (const int64_t step : config.trace().steps()) {
    if (step > steps) add("trace.steps: ", step, " is beyond the run's ", steps, " steps; nothing is traced there");
  }
  const auto idle = [&add](bool set, const char* field, const char* why) {
    if (set) add(field, ": has no effect ", why);
  };
  const EvaluationConfig& evaluation = config.evaluation();
  const ConversationData& conversations = config.data().conversations();
  idle(evaluation.max_sequences() > 0 && evaluation.every_steps() == 0, "evaluation.max_sequences",
       "without evaluation.every_steps");
  idle(conversations.validation_path_size() > 0 && evaluation.every_steps() == 0, "data.conversations.validation_path",
       "without evaluation.every_steps");
  if (conversations.validation_fraction() > 0 && evaluation.every_steps() == 0)
    add("data.conversations.validation_fraction: these samples are held back, but without evaluation.every_steps "
        "nothing is evaluated on them");
  idle(evaluation.ema() && evaluation.every_steps() == 0, "evaluation.ema", "without evaluation.every_steps");
  idle(config.data().has_conversations() && config.data().has_document_mask() && !config.data().document_mask(),
       "data.document_mask: false", "beside data.conversations, whose samples never see each other");
  idle(config.non_finite().has_max_consecutive_skips() && config.non_finite().policy() == NonFiniteConfig::STOP,
       "non_finite.max_consecutive_skips", "without non_finite.policy: SKIP_UPDATE");
  idle(config.recompute().offload() && config.recompute().policy() == RecomputeConfig::NONE, "recompute.offload",
       "without recompute.policy: BLOCK or SELECTIVE");
  const ParallelConfig& parallel = config.parallel();
  const int pipeline = recipe.engine.mesh[Axis::kPipeline];
  idle(parallel.has_context_method() && recipe.engine.mesh[Axis::kContext] == 1, "parallel.context_method",
       "without parallel.context");
  idle(parallel.has_pipeline_schedule() && pipeline == 1, "parallel.pipeline_schedule", "without parallel.pipeline");
  idle(parallel.has_reduce_gradients() && recipe.num_microbatches == 1, "parallel.reduce_gradients",
       "with one microbatch a step");
  idle(config.loss().has_router_aux_scope() && config.loss().router_aux_loss() == 0, "loss.router_aux_scope",
       "without loss.router_aux_loss");
  const ModelConfig& model = config.model();
  idle(model.quantization().has_double_quantization() && model.quantization().method() != QuantizationConfig::NF4,
       "model.quantization.double_quantization", "on INT8 and MXFP4");
  return found;
}

DecisionRule Recipe::decision_rule() const {
  DecisionRule rule;
  const NonFiniteConfig& policy = config.non_finite();
  rule.max_consecutive_skips =
      policy.policy() == NonFiniteConfig::SKIP_UPDATE ? static_cast<double>(policy.max_consecutive_skips()) : 0;
  rule.beta1 = AdamWOf(config.optimizer()).beta1();
  rule.beta2 = AdamWOf(config.optimizer()).beta2();
  return rule;
}

OptimizerMemory Recipe::optimizer_memory() const {
  OptimizerMemory memory = MemoryOf(config.optimizer());
  if (!config.has_ema()) return memory;
  // The average, and the weights aside while it is evaluated.
  const double bytes = config.evaluation().ema() ? 8 : 4;
  memory.state_bytes = [=, own = memory.state_bytes](const ParameterSpec& spec) { return own(spec) + bytes; };
  return memory;
}

double Recipe::peak_learning_rate() const { return PeakLearningRate(config.optimizer()); }

double Recipe::LearningRate(int64_t step) const {
  return LearningRateAt(config.lr_schedule(), peak_learning_rate(), step, total_steps);
}

std::vector<std::string> NumericChanges(const RunConfig& saved, const RunConfig& now) {
  RunConfig a = saved, b = now;
  for (RunConfig* config : {&a, &b}) {
    // How the work is laid out, watched, saved and reported does not change what is computed (beyond round-off).
    config->clear_parallel();
    config->clear_micro_batch_size();
    // Nor does how often it is evaluated, unless learning rates follow.
    if (!config->lr_schedule().has_plateau()) config->clear_evaluation();
    config->clear_checkpoint();
    config->clear_resume();
    config->clear_run_dir();
    config->clear_launch();
    config->clear_logging();
    config->clear_kernels();
    config->clear_recompute();
    config->clear_trace();
    config->clear_export_();
    // What these files say stands in the other fields.
    config->mutable_model()->clear_from();
    config->mutable_model()->clear_config();
    if (config->has_adapter()) config->mutable_adapter()->clear_from();
    config->clear_non_finite();
    config->mutable_data()->clear_prefetch_steps();
    config->mutable_data()->clear_verify_checksums();
    // Where the corpora lie does not matter; their content is compared by digest.
    for (DataSource& source : *config->mutable_data()->mutable_source()) source.clear_path();
    config->mutable_data()->clear_conversations();  // All of it shows in the digest.
    // Without decay the length of the run is not in the numbers.
    if (!DependsOnLength(config->lr_schedule())) config->clear_train_for();
  }
  return DiffConfigs(a, b);
}

}  // namespace trireme
