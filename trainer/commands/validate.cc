#include <absl/strings/str_join.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <memory>

#include "configs/config_loader.h"
#include "kernels/base/device.h"
#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/engine/memory_estimate.h"
#include "models/spec/parameters.h"
#include "models/weights/adapter_source.h"
#include "trainer/commands/commands.h"
#include "trainer/export/export.h"
#include "trainer/recipe/corpora.h"
#include "trainer/recipe/recipe.h"

namespace trireme {
namespace {

constexpr int64_t kAnyVocabulary = 32768;  // while the corpora cannot say

struct ValidateFlags {
  std::vector<std::string> configs, overrides;
  int ranks = 1;
  bool without_data = false;
};

// In a folder of its own: validating leaves nothing behind.
absl::Status TryInScratch(const Recipe& recipe, const Extensions& extensions) {
  std::error_code error;
  std::string scratch = (std::filesystem::temp_directory_path(error) / "trireme-validate-XXXXXX").string();
  if (::mkdtemp(scratch.data()) == nullptr) return SystemError("make a folder", scratch, /*writing=*/true);
  const absl::Status status = TryWriting(recipe, extensions.families, scratch, /*alive=*/nullptr);
  RemoveAll(scratch).IgnoreError();
  return status;
}

// Where a path does not exist yet, its nearest parent that does must let one be made.
absl::Status CheckWritable(const std::string& field, const std::string& path) {
  std::error_code error;
  std::filesystem::path there = std::filesystem::absolute(path.empty() ? "." : path, error);
  while (!there.empty() && there.has_parent_path() && there != there.parent_path() && !Exists(there.string()))
    there = there.parent_path();
  if (std::filesystem::is_directory(there, error) && ::access(there.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
  return Error(ExitCode::kStorage, field, ": nothing can be written to ", path, ", since ", there.string(),
               std::filesystem::is_directory(there, error) ? " may not be written" : " is no folder");
}

absl::Status RunValidate(const ValidateFlags& flags, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(flags.configs, flags.overrides));
  const absl::StatusOr<Corpora> corpora = flags.without_data ? absl::StatusOr<Corpora>(Corpora()) : OpenCorpora(config);
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  CorpusFacts facts;
  if (corpora.ok()) {
    facts = corpora->facts;
  } else if (!config.model().has_vocab_size()) {
    facts.vocab_size = kAnyVocabulary;
  }
  const absl::StatusOr<Recipe> recipe = MakeRecipe(config, flags.ranks, extensions.families, attention, facts);
  std::vector<std::string> problems;
  if (!recipe.ok()) problems.emplace_back(recipe.status().message());
  if (!corpora.ok()) problems.emplace_back(corpora.status().message());
  if (config.run_dir().empty()) problems.emplace_back("run_dir: not set; give a folder for checkpoints and metrics");
  if (recipe.ok()) {
    const absl::Status origin = CheckOrigin(recipe->config);
    absl::Status ending = CheckExport(recipe->config, extensions.families);
    if (ending.ok() && origin.ok() && corpora.ok()) ending = TryInScratch(*recipe, extensions);
    for (const absl::Status& status :
         {origin, ending, config.run_dir().empty() ? absl::OkStatus() : CheckWritable("run_dir", config.run_dir()),
          config.export_().output().empty()
              ? absl::OkStatus()
              : CheckWritable("export.output", std::filesystem::path(config.export_().output()).parent_path()),
          corpora.ok() && !flags.without_data ? CheckEvaluation(config, *corpora) : absl::OkStatus()})
      if (!status.ok()) problems.emplace_back(status.message());
  }
  if (!problems.empty()) {
    const bool data = recipe.ok() && problems.size() == 1 && !corpora.ok();
    std::string text = problems[0];
    if (problems.size() > 1)
      absl::StrAppend(&text, "\nand ", problems.size() - 1, " more:\n  ",
                      absl::StrJoin(problems.begin() + 1, problems.end(), "\n  "));
    return Error(data          ? ExitCodeOf(corpora.status())
                 : recipe.ok() ? ExitCode::kConfig
                               : ExitCodeOf(recipe.status()),
                 text);
  }
  std::cout << ConfigText(recipe->config) << "\n# fits " << flags.ranks << (flags.ranks == 1 ? " rank: " : " ranks: ")
            << recipe->engine.mesh.ToString() << "\n# "
            << HumanCount(static_cast<double>(NumParameters(recipe->engine.model))) << " parameters, "
            << recipe->total_steps << " steps of " << HumanCount(static_cast<double>(recipe->tokens_per_step))
            << " tokens, " << recipe->num_microbatches << " microbatches per rank and step\n";
  const absl::StatusOr<int> gpus = CudaDeviceCount();
  const bool cuda = gpus.ok() && *gpus > 0;
  int64_t together = 0;
  for (int rank = 0; rank < recipe->engine.schedule.num_ranks(); ++rank) {
    const RankMemory memory =
        EstimateMemory(recipe->engine, recipe->optimizer_memory(), rank, cuda ? at::kCUDA : at::kCPU);
    together += memory.total() * (flags.ranks / recipe->engine.schedule.num_ranks());
    std::cout << "# memory per rank"
              << (recipe->engine.schedule.num_ranks() > 1 ? absl::StrCat(" of pipeline rank ", rank) : "")
              << ", beside the program itself: " << ToString(memory) << "\n";
  }
  std::cout.flush();
  // After the config, so that they are the last that stands on the screen.
  for (const std::string& sentence : SettingsWithoutEffect(config, *recipe)) Warning(sentence);
  const int64_t there = TotalMemoryBytes(at::kCPU);
  if (!cuda && together > there)
    Warning("memory: the ", flags.ranks, " ranks need about ", HumanBytes(static_cast<double>(together)),
            " together; this machine has ", HumanBytes(static_cast<double>(there)),
            ": spread them over more machines, lower micro_batch_size or sequence_length, or set recompute");
  if (recipe->engine.model.adapter != nullptr) {
    for (const std::string& refusal : VllmRefusals(*recipe->engine.model.adapter))
      std::cout << "# adapter: " << refusal << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddValidateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<ValidateFlags>();
  CLI::App* command = app.add_subcommand(
      "validate", "Check a config against a number of ranks and its data, without starting anything");
  command->add_option("CONFIG", flags->configs, "Textproto files, merged left to right")->required();
  command->add_option("--set", flags->overrides, "Override a field, as for train")->allow_extra_args(false);
  command->add_option("--ranks", flags->ranks, "Ranks the job will have")
      ->check(NumberFrom(1, INT32_MAX, "a number of ranks"))
      ->capture_default_str();
  command->add_flag("--without-data", flags->without_data,
                    "Leave the corpora alone: for a plan on paper; model.vocab_size must be given");
  command->callback([flags, &extensions, result] { *result = RunValidate(*flags, extensions); });
}

}  // namespace trireme
