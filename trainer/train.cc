#include "trainer/train.h"

#include <absl/strings/str_format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>

#include "configs/config_loader.h"
#include "data/loader.h"
#include "kernels/cpu_allocator.h"
#include "kernels/device.h"
#include "kernels/gemm.h"
#include "kernels/thread_pool.h"
#include "launch/file.h"
#include "launch/log.h"
#include "models/parameters.h"
#include "parallel/comm/mpi_group.h"
#include "trainer/agreement.h"
#include "trainer/check_against.h"
#include "trainer/checkpointer.h"
#include "trainer/corpora.h"
#include "trainer/evaluation.h"
#include "trainer/export.h"
#include "trainer/import.h"
#include "trainer/memory_estimate.h"
#include "trainer/metrics.h"
#include "trainer/model.h"
#include "trainer/optimizer.h"
#include "trainer/same_everywhere.h"
#include "trainer/trace.h"
#include "trainer/utilization.h"
#include "trainer/version.h"
#include "trainer/watchdog.h"

namespace trireme {
namespace {

// A job once everything is set up.
struct Job {
  const TrainOptions& options;
  const Process& process;
  const Recipe& recipe;
  const Corpora& corpora;
  Mesh& mesh;
  Model& model;
  Optimizer& optimizer;
  Checkpointer& checkpointer;
  MetricsLog* metrics;  // rank 0's; null elsewhere
  Utilization utilization;
  RunComparison* comparison;  // null: none
  StepTrace trace;
  TrainProgress progress;
};

bool Due(int64_t every, int64_t step, const Recipe& recipe) {
  return every > 0 && (step % every == 0 || step == recipe.total_steps);
}

// Any rank's wish counts: all ranks stop after the same step.
bool StopRequested(Job& job) { return SumOverRanks(job.mesh.control(), job.process.stop_requested() ? 1 : 0) > 0; }

absl::Status Evaluate(Job& job) {
  if (job.corpora.validation == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double loss, EvaluateSplit(job.model, job.mesh, *job.corpora.validation, job.recipe,
                                                    job.recipe.config.evaluation().max_sequences()));
  job.progress.set_last_eval_loss(loss);
  if (!job.progress.has_best_eval_loss() || loss < job.progress.best_eval_loss()) {
    job.progress.set_best_eval_loss(loss);
    job.progress.set_best_step(job.progress.step());
  }
  return job.metrics == nullptr ? absl::OkStatus() : job.metrics->Evaluation(job.progress.step(), loss);
}

// True when this step's update must be left out. All ranks decide alike: they hold the same bits of loss and norm.
absl::StatusOr<bool> ApplyNonFinitePolicy(Job& job, const Loss& loss, const GradNorm& norm) {
  if (std::isfinite(loss.mean) && std::isfinite(norm.total)) {
    job.progress.set_consecutive_skips(0);
    return false;
  }
  const std::string where = job.model.DescribeNonFinite(job.model.last_local_loss_sum());
  const NonFiniteConfig& policy = job.recipe.config.non_finite();
  const int skips = job.progress.consecutive_skips() + 1;
  const std::string what = absl::StrCat("step ", job.progress.step(), ": loss ", loss.mean, ", gradient norm ",
                                        norm.total, " (", where, ")");
  if (policy.policy() == NonFiniteConfig::SKIP_UPDATE && skips <= policy.max_consecutive_skips()) {
    if (job.process.rank() == 0) Warning(what, "; update skipped, ", skips, " in a row");
    job.progress.set_consecutive_skips(skips);
    return true;
  }
  return MarkAgreed(
      Error(ExitCode::kNonFinite, what,
            policy.policy() == NonFiniteConfig::STOP
                ? "; the last checkpoint stands. Lower the learning rate or lengthen the warm-up, or set non_finite { "
                  "policy: SKIP_UPDATE }"
                : absl::StrCat("; ", policy.max_consecutive_skips(), " updates in a row were skipped already")));
}

absl::Status Record(Job& job, const Loss& loss, const GradNorm& norm, double learning_rate, double seconds,
                    double wait_ms, double mean_seconds) {
  const int64_t step = job.progress.step(), every = job.recipe.config.logging().every_steps();
  if (job.metrics == nullptr || (step % every != 0 && step != 1 && step != job.recipe.total_steps))
    return absl::OkStatus();
  TrainRecord record;
  record.step = step;
  record.loss = loss.mean;
  if (job.recipe.config.loss().z_loss() > 0) record.z_loss = loss.z_loss;
  record.grad_norm = norm.total;
  record.learning_rate = learning_rate;
  record.tokens = job.progress.tokens();
  record.tokens_per_second = static_cast<double>(job.recipe.tokens_per_step) / seconds;
  record.step_ms = seconds * 1e3;
  record.data_wait_ms = wait_ms;
  record.peak_memory_bytes = PeakMemoryBytes(job.mesh.device());
  const double with_target = static_cast<double>(loss.targets) / static_cast<double>(job.recipe.tokens_per_step);
  const double flops = job.recipe.model.TrainingFlopsPerToken(job.recipe.config.data().sequence_length(), with_target);
  record.mfu = job.utilization.Of(flops * record.tokens_per_second);
  record.eta_seconds = static_cast<double>(job.recipe.total_steps - step) * mean_seconds;
  return job.metrics->Train(record);
}

bool WantsNorms(const Job& job) { return job.comparison != nullptr || job.recipe.config.logging().parameter_norms(); }

absl::Status RecordOrCompareNorms(Job& job, const Loss& loss, const GradientNorms& norms) {
  if (norms.empty()) return absl::OkStatus();
  const int64_t step = job.progress.step();
  if (job.metrics != nullptr && job.recipe.config.logging().parameter_norms())
    RETURN_IF_ERROR(job.metrics->ParameterNorms(step, loss.mean, norms));
  if (job.comparison == nullptr) return absl::OkStatus();
  // Every rank holds the same numbers and finds the same.
  const absl::Status same = job.comparison->Compare(step, loss.mean, norms);
  return same.ok() ? same : MarkAgreed(same);
}

absl::Status Loop(Job& job) {
  const Recipe& recipe = job.recipe;
  LoaderOptions loading;
  loading.sequence_length = recipe.config.data().sequence_length();
  loading.document_mask = recipe.config.data().document_mask();
  loading.global_batch_size = recipe.config.global_batch_size();
  loading.micro_batch_size = recipe.config.micro_batch_size();
  loading.data_rank = job.mesh.data_rank();
  loading.num_data_ranks = job.mesh.num_data_ranks();
  loading.first_sample = job.progress.samples();
  loading.prefetch_steps = recipe.config.data().prefetch_steps();
  ASSIGN_OR_RETURN(const std::unique_ptr<Loader> loader, Loader::Create(job.corpora.train, loading));

  const double begin = MonotonicSeconds();
  const int64_t first_step = job.progress.step();
  while (job.progress.step() < recipe.total_steps) {
    const double start = MonotonicSeconds();
    const int64_t step = job.progress.step() + 1;
    job.progress.set_step(step);
    job.mesh.log().BeginStep(step);
    ASSIGN_OR_RETURN(const StepBatch batch, loader->Next());
    const bool traced = job.trace.wants(step);
    if (traced) job.trace.Start();
    ASSIGN_OR_RETURN(const Loss loss, job.model.ForwardBackward(batch));
    if (traced) RETURN_IF_ERROR(job.trace.Finish(step));
    const GradNorm norm = job.model.ClipGradNorm(recipe.config.lr_schedule().clip_grad_norm());
    const GradientNorms norms = WantsNorms(job) ? job.model.ParameterGradientNorms() : GradientNorms();
    ASSIGN_OR_RETURN(const bool skip, ApplyNonFinitePolicy(job, loss, norm));
    const double learning_rate = recipe.LearningRate(step);
    if (!skip) {
      job.progress.set_updates(job.progress.updates() + 1);
      job.optimizer.Step(job.progress.updates(), learning_rate, norm.clip_factor);
    }
    job.progress.set_samples(job.progress.samples() + recipe.config.global_batch_size());
    job.progress.set_tokens(job.progress.tokens() + recipe.tokens_per_step);

    Synchronize(job.mesh.device());
    const double seconds = MonotonicSeconds() - start;
    RETURN_IF_ERROR(Record(job, loss, norm, learning_rate, seconds, batch.wait_ms,
                           (MonotonicSeconds() - begin) / static_cast<double>(step - first_step)));

    RETURN_IF_ERROR(RecordOrCompareNorms(job, loss, norms));
    if (Due(recipe.config.evaluation().every_steps(), step, recipe)) RETURN_IF_ERROR(Evaluate(job));
    // The best model so far is worth a checkpoint whenever it is found.
    const bool best = recipe.config.checkpoint().keep_best() && job.progress.best_step() == step;
    const bool stop = StopRequested(job) || (job.options.stop_at > 0 && step >= job.options.stop_at);
    if (Due(recipe.config.checkpoint().every_steps(), step, recipe) || step == recipe.total_steps || best || stop) {
      if (job.metrics != nullptr) RETURN_IF_ERROR(job.metrics->Flush());
      RETURN_IF_ERROR(job.checkpointer.Save(job.progress));
    }
    if (stop && step < recipe.total_steps) {
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
  run.mesh = recipe.mesh.ToString();
  run.parameters = NumParameters(recipe.model);
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

// Everything once the mesh stands. An error that all ranks computed alike is marked as agreed; any other is this rank's
// own.
absl::Status Run(const TrainOptions& options, const Extensions& extensions, const Process& process, Mesh& mesh,
                 const Recipe& recipe, const Corpora& corpora, const Digest& base_digest) {
  ProcessGroup& world = mesh.control();
  const RunConfig& config = recipe.config;
  absl::Status made = absl::OkStatus();
  std::unique_ptr<FileLock> lock;
  if (world.rank() == 0) {
    made = MakeDirectories(config.run_dir() + "/checkpoints");
    if (made.ok()) made = LockRun(config.run_dir(), mesh.log(), &lock);
  }
  RETURN_IF_ERROR(Agree(world, made));
  RETURN_IF_ERROR(CheckSharedFolder(world, "run_dir", config.run_dir(), process.host()));

  Watchdog::Options watching;
  watching.seconds = config.launch().watchdog_seconds();
  watching.directory = config.run_dir() + "/watchdog";
  watching.run_id =
      BroadcastBytes(world, absl::StrCat(process.host(), "-", static_cast<int64_t>(MonotonicSeconds() * 1e6)));
  watching.rank = process.rank();
  watching.host = process.host();
  watching.world_size = process.size();
  watching.stop_requested = [&process] { return process.stop_requested(); };
  Watchdog watchdog(&mesh.log(), watching);

  // Measured more than once: the machine may be busy with something else at one moment.
  const auto measure_peak = [&mesh, bf16 = config.precision().compute() == PrecisionConfig::BF16] {
    return PeakFlops(mesh.device(), bf16 ? at::kBFloat16 : at::kFloat);
  };
  double own_peak = measure_peak();
  const RankMemory estimate = EstimateMemory(recipe, mesh.coordinate(Axis::kPipeline), mesh.device().type());
  WarnOfMemory(world, estimate.total() * (mesh.device().is_cuda() ? 1 : process.local_size()), mesh.device());
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Create(recipe, mesh, extensions);
  RETURN_IF_ERROR(Agree(world, model.status()));
  std::vector<ParameterBuffer*> buffers = (*model)->buffers();
  Optimizer optimizer(config.optimizer(), buffers, config.seed());
  Checkpointer checkpointer(recipe, mesh, **model, optimizer, corpora.digests, base_digest);
  TrainProgress progress;
  ASSIGN_OR_RETURN(const bool resumed, checkpointer.Resume(options.allow_change, &progress));
  if (progress.step() >= recipe.total_steps) {
    Info("the run is finished: step ", progress.step(), " of ", recipe.total_steps);
    RETURN_IF_ERROR(SaveAdapter(recipe, progress.step(), mesh, /*if_older=*/true));
    return ExportAtEnd(recipe, progress.step(), extensions.families, mesh);
  }
  const absl::Status writable = world.rank() == 0
                                    ? TryWriting(recipe, extensions.families, /*scratch=*/"",
                                                 [&mesh] { mesh.log().Beat("trying what will be written at the end"); })
                                    : absl::OkStatus();
  RETURN_IF_ERROR(Agree(world, writable));
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
  Info(absl::StrFormat("training %s parameters for %d steps of %s tokens on %d x %s (%s), attention %s, %s",
                       Trained(recipe.model), recipe.total_steps,
                       HumanCount(static_cast<double>(recipe.tokens_per_step)), process.size(),
                       DeviceName(mesh.device()), recipe.mesh.ToString(), (*model)->attention().name,
                       mesh.device().is_cuda() ? "NCCL" : absl::StrCat(CpuThreads(), " threads each, ", BlasName())));
  Info("memory a rank should need beside the program itself: ", ToString(estimate));
  if (corpora.unigram_entropy > 0)
    Info(absl::StrFormat("a model that only knows how common each token is would reach a loss of %.4f",
                         corpora.unigram_entropy));

  std::optional<RunComparison> comparison;
  if (!options.check_against.empty()) {
    absl::StatusOr<RunComparison> opened =
        RunComparison::Open(options.check_against, recipe.mesh.ToString(), options.check_tolerance,
                            [&mesh] { mesh.log().Beat("reading the run to check against"); });
    RETURN_IF_ERROR(Agree(world, opened.status()));
    comparison = *std::move(opened);
  }
  Job job{options,
          process,
          recipe,
          corpora,
          mesh,
          **model,
          optimizer,
          checkpointer,
          metrics.get(),
          Utilization(peak, own_peak, mesh.device().is_cuda() ? nullptr : std::function<double()>(measure_peak)),
          comparison.has_value() ? &*comparison : nullptr,
          StepTrace(recipe, mesh, (*model)->executor()),
          progress};
  absl::Status status = Loop(job);
  const auto held = static_cast<double>(PeakTensorBytes(mesh.device()));
  Info(absl::StrFormat("memory: at most %s of tensors on this rank, %+.1f%% of the estimate", HumanBytes(held),
                       100 * (held / static_cast<double>(estimate.total()) - 1)));
  if (metrics != nullptr) RETURN_IF_ERROR(metrics->Flush());
  if (status.ok() || ExitCodeOf(status) == ExitCode::kPreempted)
    RETURN_IF_ERROR(SaveAdapter(recipe, job.progress.step(), mesh));
  if (status.ok()) status = ExportAtEnd(recipe, job.progress.step(), extensions.families, mesh);
  if (status.ok() && comparison.has_value()) {
    if (comparison->compared_steps() == 0) {
      return MarkAgreed(Error(ExitCode::kCheckFailed, "--check-against: ", options.check_against,
                              " recorded none of the steps that ran; nothing was compared"));
    } else {
      Info("the same as ", options.check_against, " in ", comparison->compared_steps(), " steps, to ",
           options.check_tolerance);
    }
  }
  if (status.ok()) {
    Info(absl::StrFormat("finished: step %d, %s tokens", job.progress.step(),
                         HumanCount(static_cast<double>(job.progress.tokens()))),
         job.progress.has_last_eval_loss() ? absl::StrFormat(", validation loss %.4f", job.progress.last_eval_loss())
                                           : "",
         corpora.unigram_entropy > 0 ? absl::StrFormat(" (unigram entropy %.4f)", corpora.unigram_entropy) : "",
         "; everything is in ", config.run_dir());
  }
  return status;
}

// What can be checked before the ranks depend on each other.
struct Plan {
  Recipe recipe;
  Corpora corpora;
  at::Device device = at::kCPU;
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
  ASSIGN_OR_RETURN(plan.corpora, OpenCorpora(resolved));
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  ASSIGN_OR_RETURN(plan.recipe, MakeRecipe(config, process.size(), extensions.families, attention, plan.corpora.facts));
  RETURN_IF_ERROR(CheckEvaluation(config, plan.corpora));
  ASSIGN_OR_RETURN(plan.device, SetUpDevice(config.launch(), process));
  return plan;
}

// Collective. What each rank has read and been told for itself is the same on all. Gives the digest of the model that
// an adapter is trained on, "" where there is none.
absl::StatusOr<Digest> CompareRanks(ProcessGroup& world, const TrainOptions& options, const Plan& plan,
                                    const Process& process) {
  const RunConfig& config = plan.recipe.config;
  RETURN_IF_ERROR(
      CompareFacts(world, {{"the version of trireme", kVersion},
                           {"--allow-change", options.allow_change ? "true" : "false"},
                           {"--check-against", options.check_against.empty() ? "nothing" : options.check_against},
                           {"--check-tolerance", absl::StrCat(options.check_tolerance)},
                           {"--stop-at", absl::StrCat(options.stop_at)},
                           {"launch.device", plan.device.is_cuda() ? "a GPU" : "a CPU"}}));
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

absl::StatusOr<at::Device> SetUpDevice(const LaunchConfig& config, const Process& process) {
  InstallCpuAllocator();
  SetCpuThreads(process.recommended_threads());
  if (config.device() == LaunchConfig::CPU) return at::Device(at::kCPU);
  ASSIGN_OR_RETURN(const int gpus, CudaDeviceCount());
  if (gpus == 0 && config.device() == LaunchConfig::AUTO) return at::Device(at::kCPU);
  return UseCudaDevice(process.local_rank());
}

absl::Status Train(const TrainOptions& options, const Extensions& extensions) {
  absl::StatusOr<std::unique_ptr<Process>> started =
      Process::Start(options.expected_ranks, Process::Signals::kFinishStep);
  RETURN_IF_ERROR(started.status());
  const Process& process = **started;
  OperationLog start_log;
  const std::shared_ptr<ProcessGroup> everyone = MakeWorldGroup(&start_log);
  absl::StatusOr<Plan> plan = MakePlan(options, extensions, process);
  FailUnlessAgreed(*everyone, plan.status());
  const absl::StatusOr<Digest> base_digest = CompareRanks(*everyone, options, *plan, process);
  if (!base_digest.ok()) FailTogether(*everyone, base_digest.status());
  absl::StatusOr<std::unique_ptr<Mesh>> mesh = Mesh::Create(process, plan->recipe.mesh, plan->device);
  FailUnlessAgreed(*everyone, mesh.status());
  const absl::Status status = Run(options, extensions, process, **mesh, plan->recipe, plan->corpora, *base_digest);
  if (status.ok() || ExitCodeOf(status) == ExitCode::kPreempted) return status;
  if (IsAgreed(status)) FailTogether(*everyone, status);
  FailProcess(status);
}

}  // namespace trireme
