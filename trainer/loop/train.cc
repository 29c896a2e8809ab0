// Long because a job is set up, looped over and ended here, in the order in which it happens.
#include "trainer/loop/train.h"

#include <ATen/ops/empty.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <optional>
#include <thread>

#include "configs/config_loader.h"
#include "data/sampling/loader.h"
#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm.h"
#include "launch/base/file.h"
#include "launch/base/log.h"
#include "launch/base/version.h"
#include "models/engine/engine.h"
#include "models/engine/job.h"
#include "models/engine/memory_estimate.h"
#include "models/source/model_config.h"
#include "models/spec/parameters.h"
#include "models/weights/checkpoint_list.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/watchdog.h"
#include "trainer/export/export.h"
#include "trainer/loop/check_against.h"
#include "trainer/loop/checkpointer.h"
#include "trainer/loop/evaluation.h"
#include "trainer/loop/initialize.h"
#include "trainer/loop/optimizer.h"
#include "trainer/loop/weight_average.h"
#include "trainer/observe/metrics.h"
#include "trainer/observe/trace.h"
#include "trainer/observe/utilization.h"
#include "trainer/recipe/corpora.h"
#include "trainer/recipe/optimization.h"
#include "trainer/recipe/same_everywhere.h"

namespace trireme {
namespace {

// The batch of the step to come, uploaded while the one before it runs.
struct NextStep {
  absl::Status status;  // the loader's
  DeviceBatch batch;
  double targets = 0, tokens = 0;  // in the global batch
  double wait_ms = 0;              // for the loader
};

// A step that was issued, and whose results the host has not looked at.
struct IssuedStep {
  int64_t step = 0, tokens = 0;  // with this one
  double learning_rate = 0;
  double data_wait_ms = 0;  // while it ran
  PendingResults results;
  GradientNorms norms;  // of each parameter, where they are wanted
};

// A run once everything is set up.
struct Training {
  const TrainOptions& options;
  const Process& process;
  const Recipe& recipe;
  const Corpora& corpora;
  Mesh& mesh;
  Engine& model;
  Optimizer& optimizer;
  WeightAverage* average;  // null: none
  Checkpointer& checkpointer;
  MetricsLog* metrics;  // rank 0's; null elsewhere
  Utilization utilization;
  RunComparison* comparison;  // null: none
  StepTrace trace;
  TrainProgress progress;  // updates and consecutive_skips are those of the last step whose results are known
  std::deque<IssuedStep> issued = {};
  double begin = 0, settled = 0;  // MonotonicSeconds() of the first step and of the last results or what came after
  double step_seconds = 0;        // of all steps whose results are known
  int64_t first_step = 0;         // done when the job began
};

bool Due(int64_t every, int64_t step, const Recipe& recipe) {
  return every > 0 && (step % every == 0 || step == recipe.total_steps);
}

NextStep Prepare(Training& training, Loader& loader) {
  NextStep next;
  if (training.progress.step() >= training.recipe.total_steps) return next;
  absl::StatusOr<StepBatch> batch = loader.Next();
  next.status = batch.status();
  if (!batch.ok()) return next;
  next.wait_ms = batch->wait_ms;
  next.batch = training.model.Upload(*std::move(batch));
  return next;
}

// The only control message of a step: how many targets and tokens the next one has, and whether any rank was asked to
// stop. All ranks stop after the same step.
bool ExchangeControl(Training& training, NextStep* next) {
  const int ranks = training.mesh.control().size();
  at::Tensor own = at::empty({3}, at::TensorOptions().dtype(at::kDouble));
  at::Tensor all = at::empty({3 * ranks}, own.options());
  own.mutable_data_ptr<double>()[0] = next->batch.own_targets;
  own.mutable_data_ptr<double>()[1] = next->batch.own_tokens;
  own.mutable_data_ptr<double>()[2] = training.process.stop_requested() ? 1 : 0;
  training.mesh.control().AllGather(all, own).Wait();
  bool stop = false;
  for (const double* of_rank = all.const_data_ptr<double>(); of_rank != all.const_data_ptr<double>() + 3 * ranks;
       of_rank += 3) {
    next->targets += of_rank[0];
    next->tokens += of_rank[1];
    stop = stop || of_rank[2] > 0;
  }
  const int sharing = ranks / training.mesh.num_data_ranks();  // Pipeline, context and tensor ranks share a batch.
  next->targets /= sharing;
  next->tokens /= sharing;
  return stop;
}

absl::Status Evaluate(Training& training) {
  if (training.corpora.validation == nullptr) return absl::OkStatus();
  std::optional<WeightAverage::InPlace> averaged;
  if (training.recipe.config.evaluation().ema() && !training.average->empty()) averaged.emplace(*training.average);
  ASSIGN_OR_RETURN(const double loss,
                   EvaluateSplit(training.model, training.mesh, *training.corpora.validation, training.recipe,
                                 training.recipe.config.evaluation().max_sequences()));
  averaged.reset();
  training.progress.set_last_eval_loss(loss);
  if (!training.progress.has_best_eval_loss() || loss < training.progress.best_eval_loss()) {
    training.progress.set_best_eval_loss(loss);
    training.progress.set_best_step(training.progress.step());
  }
  const LrScheduleConfig& schedule = training.recipe.config.lr_schedule();
  if (schedule.has_plateau())
    ObserveEvaluation(schedule.plateau(), training.recipe.peak_learning_rate(), loss,
                      training.progress.mutable_plateau());
  return training.metrics == nullptr ? absl::OkStatus() : training.metrics->Evaluation(training.progress.step(), loss);
}

// For a step whose update was left out. All ranks hold the same results, and fail alike.
absl::Status ApplyNonFinitePolicy(Training& training, int64_t step, const StepResults& results) {
  const NonFiniteConfig& policy = training.recipe.config.non_finite();
  training.progress.set_consecutive_skips(static_cast<int32_t>(results.consecutive_skips));
  training.progress.set_updates(results.updates);
  if (results.finite) return absl::OkStatus();
  const std::string what = absl::StrCat("step ", step, ": loss ", results.loss.mean, ", gradient norm ",
                                        results.norm.total, " (", training.model.DescribeNonFinite(results), ")");
  if (policy.policy() == NonFiniteConfig::SKIP_UPDATE && results.consecutive_skips <= policy.max_consecutive_skips()) {
    if (training.process.rank() == 0) Warning(what, "; update skipped, ", results.consecutive_skips, " in a row");
    return absl::OkStatus();
  }
  return MarkAgreed(
      Error(ExitCode::kNonFinite, what,
            policy.policy() == NonFiniteConfig::STOP
                ? "; the last checkpoint, if there is one, stands. Lower the learning rate or lengthen the warm-up, or "
                  "set non_finite { "
                  "policy: SKIP_UPDATE }"
                : absl::StrCat("; ", policy.max_consecutive_skips(), " updates in a row were skipped already")));
}

absl::Status Record(Training& training, const IssuedStep& issued, const StepResults& results, double seconds) {
  const int64_t step = issued.step, every = training.recipe.config.logging().every_steps();
  if (training.metrics == nullptr || (step % every != 0 && step != 1 && step != training.recipe.total_steps))
    return absl::OkStatus();
  TrainRecord record;
  record.step = step;
  record.loss = results.loss.mean;
  if (training.recipe.config.loss().z_loss() > 0) record.z_loss = results.loss.z_loss;
  record.routers = results.routers;
  record.grad_norm = results.norm.total;
  record.learning_rate = issued.learning_rate;
  record.tokens = issued.tokens;
  record.tokens_per_second = static_cast<double>(training.recipe.tokens_per_step) / seconds;
  record.step_ms = seconds * 1e3;
  record.data_wait_ms = issued.data_wait_ms;
  record.peak_memory_bytes = PeakMemoryBytes(training.mesh.device());
  const double with_target =
      static_cast<double>(results.loss.targets) / static_cast<double>(training.recipe.tokens_per_step);
  const double flops =
      training.recipe.engine.model.TrainingFlopsPerToken(training.recipe.config.data().sequence_length(), with_target);
  record.mfu = training.utilization.Of(flops * record.tokens_per_second);
  const double mean_seconds = (MonotonicSeconds() - training.begin) / static_cast<double>(step - training.first_step);
  record.eta_seconds = static_cast<double>(training.recipe.total_steps - step) * mean_seconds;
  return training.metrics->Train(record);
}

bool WantsNorms(const Training& training) {
  return training.comparison != nullptr || training.recipe.config.logging().parameter_norms();
}

absl::Status RecordOrCompareNorms(Training& training, int64_t step, const Loss& loss, const GradientNorms& norms) {
  if (norms.empty()) return absl::OkStatus();
  if (training.metrics != nullptr && training.recipe.config.logging().parameter_norms())
    RETURN_IF_ERROR(training.metrics->ParameterNorms(step, loss.mean, norms));
  if (training.comparison == nullptr) return absl::OkStatus();
  // Every rank holds the same numbers and finds the same.
  const absl::Status same = training.comparison->Compare(step, loss.mean, norms);
  return same.ok() ? same : MarkAgreed(same);
}

// Looks at the results of all issued steps but the last `ahead`.
absl::Status Settle(Training& training, int64_t ahead) {
  while (static_cast<int64_t>(training.issued.size()) > ahead) {
    const IssuedStep issued = std::move(training.issued.front());
    training.issued.pop_front();
    const StepResults results = issued.results.Wait();
    const double seconds = MonotonicSeconds() - std::exchange(training.settled, MonotonicSeconds());
    training.step_seconds += seconds;
    RETURN_IF_ERROR(ApplyNonFinitePolicy(training, issued.step, results));
    RETURN_IF_ERROR(Record(training, issued, results, seconds));
    RETURN_IF_ERROR(RecordOrCompareNorms(training, issued.step, results.loss, issued.norms));
  }
  return absl::OkStatus();
}

absl::Status Loop(Training& training) {
  const Recipe& recipe = training.recipe;
  LoaderOptions loading;
  loading.sequence_length = recipe.config.data().sequence_length();
  loading.document_mask = recipe.config.data().document_mask();
  loading.global_batch_size = recipe.config.global_batch_size();
  loading.micro_batch_size = recipe.config.micro_batch_size();
  loading.data_rank = training.mesh.data_rank();
  loading.num_data_ranks = training.mesh.num_data_ranks();
  loading.first_sample = training.progress.samples();
  loading.prefetch_steps = recipe.config.data().prefetch_steps();
  ASSIGN_OR_RETURN(const std::unique_ptr<Loader> loader, Loader::Create(training.corpora.train, loading));

  training.begin = training.settled = MonotonicSeconds();
  training.first_step = training.progress.step();
  NextStep next = Prepare(training, *loader);
  ExchangeControl(training, &next);
  while (training.progress.step() < recipe.total_steps) {
    const NextStep current = std::exchange(next, NextStep());
    const int64_t step = training.progress.step() + 1;
    training.progress.set_step(step);
    training.mesh.log().BeginStep(step);
    if (!current.status.ok()) RETURN_IF_ERROR(Settle(training, 0));
    RETURN_IF_ERROR(current.status);
    RETURN_IF_ERROR(CheckTargets(current.targets));
    const bool traced = training.trace.wants(step);
    if (traced) training.trace.Start();
    training.model.ForwardBackward(current.batch, current.targets, current.tokens);
    if (traced) RETURN_IF_ERROR(training.trace.Finish(step));
    PendingResults results = training.model.Decide(recipe.config.lr_schedule().clip_grad_norm());
    GradientNorms norms = WantsNorms(training) ? training.model.ParameterGradientNorms() : GradientNorms();
    const double learning_rate = recipe.LearningRate(step) * training.progress.plateau().factor();
    training.optimizer.Step(step, learning_rate, training.model.decision(), training.model.loads());
    if (training.average != nullptr) {
      training.average->Follow(step);
      training.progress.set_ema_updates(training.average->updates());
    }
    training.progress.set_samples(training.progress.samples() + recipe.config.global_batch_size());
    training.progress.set_tokens(training.progress.tokens() + recipe.tokens_per_step);

    next = Prepare(training, *loader);
    const bool stop =
        ExchangeControl(training, &next) || (training.options.stop_at > 0 && step >= training.options.stop_at);
    training.issued.push_back(
        {step, training.progress.tokens(), learning_rate, next.wait_ms, std::move(results), std::move(norms)});
    const bool evaluate = Due(recipe.config.evaluation().every_steps(), step, recipe);
    const bool save = Due(recipe.config.checkpoint().every_steps(), step, recipe) || stop;
    const bool last = step == recipe.total_steps;
    RETURN_IF_ERROR(Settle(training, evaluate || save || last ? 0 : StepsAhead(training.mesh.device())));
    if (evaluate) RETURN_IF_ERROR(Evaluate(training));
    // The best model so far is worth a checkpoint whenever it is found.
    const bool best = recipe.config.checkpoint().keep_best() && training.progress.best_step() == step;
    if (save || last || best) {
      if (training.metrics != nullptr) RETURN_IF_ERROR(training.metrics->Flush());
      RETURN_IF_ERROR(training.checkpointer.Save(training.progress));
    }
    if (evaluate || save || last || best) training.settled = MonotonicSeconds();
    if (stop && !last) {
      return Error(ExitCode::kPreempted, "stopped after step ", step, " of ", recipe.total_steps,
                   " and saved; start the same command again to go on");
    }
  }
  return absl::OkStatus();
}

RunDescription Describe(const Recipe& recipe, const Process& process, at::Device device) {
  RunDescription run;
  run.config = ConfigText(recipe.config);
  run.ranks = process.size();
  run.mesh = recipe.engine.mesh.ToString();
  run.parameters = NumParameters(recipe.engine.model);
  run.device = DeviceName(device);
  run.total_steps = recipe.total_steps;
  run.version = kVersion;
  run.started = TimestampUtc();
  return run;
}

// Machines differ, and so do pipeline ranks: each rank looks for itself. Collective.
void WarnOfMemory(ProcessGroup& world, int64_t needed, at::Device device) {
  const int64_t there = TotalMemoryBytes(device);
  const std::string warning =
      absl::StrCat("memory: the ranks of a ", device.is_cuda() ? "GPU" : "machine", " will need about ",
                   HumanBytes(static_cast<double>(needed)), ", but there is ", HumanBytes(static_cast<double>(there)),
                   "; lower micro_batch_size or sequence_length, set recompute, or spread the model over more ranks");
  WarnTogether(world, needed > there ? warning : "");
}

// "135M", or "2.44M of 137M".
std::string Trained(const DecoderSpec& model) {
  const int64_t trained = NumTrainableParameters(model);
  int64_t all = NumParameters(model);
  if (trained == all) return HumanCount(static_cast<double>(all));
  for (const ParameterSpec& parameter : AdapterParameters(model)) all += Numel(parameter);
  return absl::StrCat(HumanCount(static_cast<double>(trained)), " of ", HumanCount(static_cast<double>(all)));
}

// One job at a time writes into a run_dir. A job that is ending has a moment to go.
absl::Status LockRun(const std::string& run_dir, OperationLog& log, std::unique_ptr<FileLock>* lock) {
  constexpr double kPatience = 15;  // seconds
  const double start = MonotonicSeconds();
  while (true) {
    ASSIGN_OR_RETURN(*lock, FileLock::Take(run_dir + "/lock"));
    if (*lock != nullptr) return absl::OkStatus();
    if (MonotonicSeconds() - start > kPatience)
      return Error(ExitCode::kConfig, "run_dir: another job is writing into ", run_dir,
                   "; wait for it, stop it, or choose another run_dir");
    log.Beat("waiting for another job in run_dir");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

// Collective. run_dir exists, is this job's alone while `lock` lives (on rank 0), and is one folder for all ranks.
absl::Status TakeRunDir(const RunConfig& config, const Process& process, Mesh& mesh, std::unique_ptr<FileLock>* lock) {
  const std::string& run_dir = config.run_dir();
  absl::Status taken = absl::OkStatus();
  if (mesh.control().rank() == 0) {
    taken = MakeDirectories(CheckpointsRoot(run_dir));
    if (taken.ok()) taken = LockRun(run_dir, mesh.log(), lock);
    if (taken.ok()) taken = KeepTokenizer(config);
  }
  RETURN_IF_ERROR(Agree(mesh.control(), taken));
  return CheckSharedFolder(mesh.control(), "run_dir", run_dir, process.host());
}

// Collective: all ranks watch under one name.
Watchdog::Options WatchdogOptions(const RunConfig& config, const Process& process, ProcessGroup& world) {
  Watchdog::Options watching;
  watching.seconds = config.launch().watchdog_seconds();
  watching.directory = config.run_dir() + "/watchdog";
  watching.run_id =
      BroadcastBytes(world, absl::StrCat(process.host(), "-", static_cast<int64_t>(MonotonicSeconds() * 1e6)));
  watching.rank = process.rank();
  watching.host = process.host();
  watching.world_size = process.size();
  watching.stop_requested = [&process] { return process.stop_requested(); };
  return watching;
}

// Collective. What the run writes at its end is written now, on trial, by rank 0.
absl::Status TryEnd(const Recipe& recipe, const std::vector<ModelFamily>& families, Mesh& mesh) {
  absl::Status writable = absl::OkStatus();
  if (mesh.control().rank() == 0)
    writable = TryWriting(recipe, families, /*scratch=*/"",
                          [&mesh] { mesh.log().Beat("trying what will be written at the end"); });
  return Agree(mesh.control(), writable);
}

// What the run begins with, for whoever watches.
void TellBeginning(const Recipe& recipe, const Corpora& corpora, const Mesh& mesh, const Engine& model,
                   const RankMemory& estimate) {
  Info(absl::StrFormat(
      "trireme %s: training %s parameters for %d steps of %s tokens on %d x %s (%s), attention %s, %s", kVersion,
      Trained(recipe.engine.model), recipe.total_steps, HumanCount(static_cast<double>(recipe.tokens_per_step)),
      recipe.engine.mesh.world(), DeviceName(mesh.device()), recipe.engine.mesh.ToString(), model.attention().name,
      mesh.device().is_cuda() ? "NCCL" : absl::StrCat(CpuThreads(), " threads each, ", ProductsName())));
  Info("memory a rank should need beside the program itself: ", ToString(estimate));
  if (corpora.unigram_entropy > 0)
    Info(absl::StrFormat("a model that only knows how common each token is would reach a loss of %.4f",
                         corpora.unigram_entropy));
}

// Collective. The run to compare with; nullopt: none.
absl::StatusOr<std::optional<RunComparison>> OpenComparison(const TrainOptions& options, const Recipe& recipe,
                                                            Mesh& mesh) {
  if (options.check_against.empty()) return std::nullopt;
  absl::StatusOr<RunComparison> opened =
      RunComparison::Open(options.check_against, recipe.engine.mesh.ToString(), options.check_tolerance,
                          [&mesh] { mesh.log().Beat("reading the run to check against"); });
  RETURN_IF_ERROR(Agree(mesh.control(), opened.status()));
  return std::optional<RunComparison>(*std::move(opened));
}

absl::Status TellComparison(const TrainOptions& options, const RunComparison& comparison) {
  if (comparison.compared_steps() == 0)
    return MarkAgreed(Error(ExitCode::kCheckFailed, "--check-against: ", options.check_against,
                            " recorded none of the steps that ran; nothing was compared"));
  Info("the same as ", options.check_against, " in ", comparison.compared_steps(), " steps, to ",
       options.check_tolerance);
  return absl::OkStatus();
}

// After the last step, or the last before a stop. status: how the loop ended.
absl::Status Finish(Training& training, const Extensions& extensions, const RankMemory& estimate,
                    const absl::Status& status) {
  const Recipe& recipe = training.recipe;
  const TrainProgress& progress = training.progress;
  const auto held = static_cast<double>(PeakTensorBytes(training.mesh.device()));
  Info(absl::StrFormat("memory: at most %s of tensors on this rank, %+.1f%% of the estimate", HumanBytes(held),
                       100 * (held / static_cast<double>(estimate.total()) - 1)));
  if (training.optimizer.newton_schulz_seconds() > 0) {
    Info(absl::StrFormat("Newton-Schulz: %.1f%% of the steps' time on this rank",
                         100 * training.optimizer.newton_schulz_seconds() / training.step_seconds));
  }
  if (training.metrics != nullptr) RETURN_IF_ERROR(training.metrics->Flush());
  if (status.ok() || ExitCodeOf(status) == ExitCode::kPreempted)
    RETURN_IF_ERROR(SaveAdapter(recipe, progress.step(), training.mesh));
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(ExportAtEnd(recipe, progress.step(), extensions.families, training.mesh));
  if (training.comparison != nullptr) RETURN_IF_ERROR(TellComparison(training.options, *training.comparison));
  const double entropy = training.corpora.unigram_entropy;
  Info(absl::StrFormat("finished: step %d, %s tokens", progress.step(),
                       HumanCount(static_cast<double>(progress.tokens()))),
       progress.has_last_eval_loss() ? absl::StrFormat(", validation loss %.4f", progress.last_eval_loss()) : "",
       entropy > 0 ? absl::StrFormat(" (unigram entropy %.4f)", entropy) : "", "; everything is in ",
       recipe.config.run_dir());
  return absl::OkStatus();
}

// Everything once the mesh stands. An error that all ranks computed alike is marked as agreed; any other is this rank's
// own.
absl::Status Run(const TrainOptions& options, const Extensions& extensions, const Process& process, Mesh& mesh,
                 const Recipe& recipe, const Corpora& corpora, const Digest& base_digest) {
  ProcessGroup& world = mesh.control();
  const RunConfig& config = recipe.config;
  std::unique_ptr<FileLock> lock;
  RETURN_IF_ERROR(TakeRunDir(config, process, mesh, &lock));
  Watchdog watchdog(&mesh.log(), WatchdogOptions(config, process, world));

  // Measured more than once: the machine may be busy with something else at one moment.
  const auto measure_peak = [&mesh, compute = recipe.engine.storage.compute] {
    return PeakFlops(mesh.device(), compute);
  };
  double own_peak = measure_peak();
  const RankMemory estimate =
      EstimateMemory(recipe.engine, recipe.optimizer_memory(), mesh.coordinate(Axis::kPipeline), mesh.device().type());
  WarnOfMemory(world, estimate.total() * (mesh.device().is_cuda() ? 1 : process.local_size()), mesh.device());
  absl::StatusOr<std::unique_ptr<Engine>> model = Engine::Create(recipe.engine, mesh, extensions);
  RETURN_IF_ERROR(Agree(world, model.status()));
  (*model)->set_decision_rule(recipe.decision_rule());
  Optimizer optimizer(config.optimizer(), (*model)->buffers(), config.seed(), &mesh);
  std::optional<WeightAverage> average;
  if (config.has_ema()) average.emplace(config.ema(), (*model)->buffers());
  Checkpointer checkpointer(recipe, mesh, **model, optimizer, corpora.digests, base_digest, corpora.text,
                            average.has_value() ? &*average : nullptr);
  TrainProgress progress;
  ASSIGN_OR_RETURN(const bool resumed, checkpointer.Resume(options.allow_change, &progress));
  if (!average.has_value()) progress.clear_ema_updates();
  if (progress.step() >= recipe.total_steps) {
    Info("the run is finished: step ", progress.step(), " of ", recipe.total_steps);
    RETURN_IF_ERROR(SaveAdapter(recipe, progress.step(), mesh, /*if_older=*/true));
    return ExportAtEnd(recipe, progress.step(), extensions.families, mesh);
  }
  RETURN_IF_ERROR(TryEnd(recipe, extensions.families, mesh));
  RETURN_IF_ERROR(InitializeWeights(recipe, mesh, **model, resumed));
  std::unique_ptr<MetricsLog> metrics;
  if (process.rank() == 0) {
    ASSIGN_OR_RETURN(metrics, MetricsLog::Open(config.run_dir(), config.logging().tensorboard(),
                                               Describe(recipe, process, mesh.device()), progress.step(),
                                               [&mesh] { mesh.log().Beat("reading metrics.jsonl"); }));
  }
  own_peak = std::max(own_peak, measure_peak());
  const double peak = SumOverRanks(world, own_peak);
  ReleaseCachedCpuMemory();
  ResetPeakTensorBytes(mesh.device());
  TellBeginning(recipe, corpora, mesh, **model, estimate);
  ASSIGN_OR_RETURN(std::optional<RunComparison> comparison, OpenComparison(options, recipe, mesh));
  Training training{
      options,
      process,
      recipe,
      corpora,
      mesh,
      **model,
      optimizer,
      average.has_value() ? &*average : nullptr,
      checkpointer,
      metrics.get(),
      Utilization(peak, own_peak, mesh.device().is_cuda() ? nullptr : std::function<double()>(measure_peak)),
      comparison.has_value() ? &*comparison : nullptr,
      StepTrace(recipe, mesh, (*model)->executor()),
      progress};
  const absl::Status status = Loop(training);
  return Finish(training, extensions, estimate, status);
}

// What can be checked before the ranks depend on each other.
struct Plan {
  Recipe recipe;
  Corpora corpora;
};

absl::StatusOr<Plan> MakePlan(const TrainOptions& options, const Extensions& extensions, const Process& process) {
  Plan plan;
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(options.configs, options.overrides));
  if (config.run_dir().empty())
    return Error(ExitCode::kConfig, "run_dir: not set; give a folder for checkpoints and metrics");
  // Tokens are checked against the model's vocabulary; what is wrong with the model itself, MakeRecipe says.
  RunConfig resolved = config;
  std::vector<std::string> problems;
  ResolveModelConfig(extensions.families, resolved.mutable_model(), &problems);
  ASSIGN_OR_RETURN(plan.corpora, OpenCorpora(resolved, SplitOfRun(resolved)));
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  ASSIGN_OR_RETURN(plan.recipe, MakeRecipe(config, process.size(), extensions.families, attention, plan.corpora.facts));
  if (process.rank() == 0) {
    for (const std::string& sentence : SettingsWithoutEffect(config, plan.recipe)) Warning(sentence);
  }
  RETURN_IF_ERROR(CheckOrigin(plan.recipe.config));
  RETURN_IF_ERROR(CheckEvaluation(config, plan.corpora));
  return plan;
}

// Collective. What each rank has read and been told for itself is the same on all. Gives the digest of the model that
// an adapter is trained on, "" where there is none.
absl::StatusOr<Digest> CompareRanks(ProcessGroup& world, const TrainOptions& options, const Plan& plan,
                                    const Process& process, at::Device device) {
  const RunConfig& config = plan.recipe.config;
  std::vector<SharedFact> facts = ProgramFacts(device);
  facts.push_back({"--allow-change", options.allow_change ? "true" : "false"});
  facts.push_back({"--check-against", options.check_against.empty() ? "nothing" : options.check_against});
  facts.push_back({"--check-tolerance", absl::StrCat(options.check_tolerance)});
  facts.push_back({"--stop-at", absl::StrCat(options.stop_at)});
  RETURN_IF_ERROR(CompareFacts(world, facts));
  RETURN_IF_ERROR(CompareConfigs(world, config));
  std::vector<std::pair<std::string, Digest>> contents = plan.corpora.contents;
  absl::StatusOr<Digest> base = Digest();
  if (config.model().has_from() && (world.size() > 1 || config.has_adapter())) {
    const std::string& from = config.model().from();
    base = DigestOncePerMachine(world, process.host(), from, [&] { return IdentifyModel(from); });
    contents.emplace_back("model.from", DigestOrError(base));
  }
  if (config.adapter().has_from() && world.size() > 1) {
    const std::string& from = config.adapter().from();
    contents.emplace_back("adapter.from", DigestOrError(DigestOncePerMachine(world, process.host(), from,
                                                                             [&] { return IdentifyAdapter(from); })));
  }
  RETURN_IF_ERROR(CompareFacts(world, ContentFacts(contents)));
  // A run that resumes needs none of the base's weights unless it trains an adapter.
  if (!config.has_adapter()) return Digest();
  if (!base.ok()) return MarkAgreed(base.status());
  return base;
}

}  // namespace

absl::Status Train(const TrainOptions& options, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Job> job, Job::Start(options.expected_ranks, Process::Signals::kFinishStep));
  Plan plan;
  Digest base_digest;
  JobSteps steps;
  steps.plan = [&](const Process& process) -> absl::StatusOr<JobPlan> {
    ASSIGN_OR_RETURN(plan, MakePlan(options, extensions, process));
    return JobPlan{plan.recipe.engine.mesh, plan.recipe.config.launch(), plan.recipe.config.kernels()};
  };
  steps.compare = [&](ProcessGroup& world, at::Device device) -> absl::Status {
    ASSIGN_OR_RETURN(base_digest, CompareRanks(world, options, plan, job->process(), device));
    return absl::OkStatus();
  };
  steps.run = [&](Mesh& mesh) {
    return Run(options, extensions, job->process(), mesh, plan.recipe, plan.corpora, base_digest);
  };
  return job->Run(steps);
}

}  // namespace trireme
