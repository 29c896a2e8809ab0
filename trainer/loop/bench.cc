#include "trainer/loop/bench.h"

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "configs/config_loader.h"
#include "kernels/base/device.h"
#include "kernels/base/philox.h"
#include "kernels/base/thread_pool.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "models/engine/engine.h"
#include "models/engine/job.h"
#include "models/spec/parameters.h"
#include "parallel/comm/agreement.h"
#include "trainer/loop/optimizer.h"
#include "trainer/observe/utilization.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/same_everywhere.h"

namespace trireme {
namespace {

// A step of random tokens: every sequence one segment.
StepBatch SyntheticBatch(const Recipe& recipe, int64_t step, int data_rank) {
  const int64_t length = recipe.config.data().sequence_length();
  const auto vocab = static_cast<uint64_t>(recipe.engine.model.vocab_size);
  const RandomKey key = MakeRandomKey(recipe.config.seed(), RandomPurpose::kSynthetic, static_cast<uint64_t>(data_rank),
                                      static_cast<uint64_t>(step));
  StepBatch batch;
  uint64_t counter = 0;
  for (int64_t m = 0; m < recipe.num_microbatches; ++m) {
    Microbatch& microbatch = batch.microbatches.emplace_back();
    for (int64_t s = 0; s < recipe.config.micro_batch_size(); ++s) {
      Sample sample;
      for (int64_t i = 0; i <= length; ++i)
        sample.tokens.push_back(static_cast<int64_t>(Philox(key, counter++, 0).word[0] % vocab));
      AppendSequence(sample, /*document_mask=*/false, &microbatch);
    }
  }
  return batch;
}

absl::StatusOr<Recipe> PlanBench(const BenchOptions& options, const Extensions& extensions, int ranks) {
  ASSIGN_OR_RETURN(RunConfig config, LoadConfig(options.configs, options.overrides));
  if (!config.train_for().has_steps()) config.mutable_train_for()->set_steps(options.warmup + options.steps);
  if (!config.model().has_vocab_size())
    return Error(ExitCode::kConfig,
                 "model.vocab_size: not set; bench reads no corpus, so give it here: --set model.vocab_size=4096");
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  return MakeRecipe(config, ranks, extensions.families, attention, CorpusFacts());
}

// Steps of random tokens on every rank; rank 0 prints what they took. idle_bytes: the program's memory without a model.
absl::Status RunSteps(const BenchOptions& options, const Extensions& extensions, const Recipe& recipe,
                      int64_t idle_bytes, Mesh& mesh) {
  ProcessGroup& world = mesh.control();
  const absl::StatusOr<std::unique_ptr<Engine>> model = Engine::Create(recipe.engine, mesh, extensions);
  RETURN_IF_ERROR(Agree(world, model.status()));
  (*model)->set_decision_rule(recipe.decision_rule());
  Optimizer optimizer(recipe.config.optimizer(), (*model)->buffers(), recipe.config.seed(), &mesh);
  (*model)->Initialize();

  const at::ScalarType dtype = recipe.engine.storage.compute;
  double own_peak = PeakFlops(mesh.device(), dtype);
  std::vector<double> times;
  double loss_mean = 0;
  for (int64_t step = 1; step <= options.warmup + options.steps; ++step) {
    // As in training the batch is on the device when the step begins.
    const DeviceBatch batch = (*model)->Upload(SyntheticBatch(recipe, step, mesh.data_rank()));
    const double targets = batch.own_targets * mesh.num_data_ranks();
    mesh.control().Barrier();
    const double start = MonotonicSeconds();
    (*model)->ForwardBackward(batch, targets, batch.own_tokens * mesh.num_data_ranks());
    const PendingResults results = (*model)->Decide(recipe.config.lr_schedule().clip_grad_norm());
    optimizer.Step(step, recipe.LearningRate(step), (*model)->decision(), (*model)->loads());
    loss_mean = results.Wait().loss.mean;
    Synchronize(mesh.device());
    if (step > options.warmup) times.push_back(MonotonicSeconds() - start);
  }
  const int64_t peak_bytes = PeakMemoryBytes(mesh.device());
  own_peak = std::max(own_peak, PeakFlops(mesh.device(), dtype));
  const double peak_flops = SumOverRanks(world, own_peak);
  if (world.rank() != 0) return absl::OkStatus();
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const double rate = static_cast<double>(recipe.tokens_per_step) / median;
  nlohmann::ordered_json line = {{"tokens_per_second", rate},
                                 {"step_ms", {{"median", median * 1e3}, {"min", times[0] * 1e3}}},
                                 {"peak_memory_bytes", peak_bytes},
                                 {"idle_memory_bytes", idle_bytes}};
  const double flops = recipe.engine.model.TrainingFlopsPerToken(recipe.config.data().sequence_length()) * rate;
  const std::optional<double> utilization = Utilization(peak_flops, own_peak, nullptr).Of(flops);
  if (utilization.has_value()) line["model_flops_utilization"] = *utilization;
  line["loss"] = loss_mean;
  line["ranks"] = world.size();
  line["threads_per_rank"] = CpuThreads();
  line["device"] = DeviceName(mesh.device());
  line["attention"] = (*model)->attention().name;
  line["parameters"] = NumParameters(recipe.engine.model);
  std::cout << DumpJson(line) << std::endl;
  return absl::OkStatus();
}

}  // namespace

absl::Status Bench(const BenchOptions& options, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Job> job, Job::Start(options.expected_ranks, Process::Signals::kDefault));
  Recipe recipe;
  int64_t idle_bytes = 0;
  JobSteps steps;
  steps.plan = [&](const Process& process) -> absl::StatusOr<JobPlan> {
    ASSIGN_OR_RETURN(recipe, PlanBench(options, extensions, process.size()));
    return JobPlan{recipe.engine.mesh, recipe.config.launch(), recipe.config.kernels()};
  };
  steps.compare = [&](ProcessGroup& world, at::Device device) {
    idle_bytes = PeakMemoryBytes(device);
    std::vector<SharedFact> facts = ProgramFacts(device);
    facts.push_back({"--steps", absl::StrCat(options.steps)});
    facts.push_back({"--warmup", absl::StrCat(options.warmup)});
    RETURN_IF_ERROR(CompareFacts(world, facts));
    return CompareConfigs(world, recipe.config);
  };
  steps.run = [&](Mesh& mesh) { return RunSteps(options, extensions, recipe, idle_bytes, mesh); };
  return job->Run(steps);
}

}  // namespace trireme
