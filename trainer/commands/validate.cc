#include <iostream>
#include <memory>

#include "configs/config_loader.h"
#include "launch/log.h"
#include "models/parameters.h"
#include "trainer/adapter_source.h"
#include "trainer/commands.h"
#include "trainer/corpora.h"
#include "trainer/memory_estimate.h"
#include "trainer/recipe.h"

namespace trireme {
namespace {

struct Flags {
  std::vector<std::string> configs, overrides;
  int ranks = 1;
  bool without_data = false;
};

absl::Status Run(const Flags& flags, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(flags.configs, flags.overrides));
  const absl::StatusOr<Corpora> corpora = flags.without_data ? absl::StatusOr<Corpora>(Corpora()) : OpenCorpora(config);
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  const absl::StatusOr<Recipe> recipe =
      MakeRecipe(config, flags.ranks, extensions.families, attention, corpora.ok() ? corpora->facts : CorpusFacts());
  if (!recipe.ok() && !corpora.ok())
    return Error(ExitCode::kConfig, recipe.status().message(), "\n  ", corpora.status().message());
  RETURN_IF_ERROR(recipe.status());
  RETURN_IF_ERROR(corpora.status());
  std::cout << ConfigText(recipe->config) << "\n# fits " << flags.ranks << " ranks: " << recipe->mesh.ToString()
            << "\n# " << HumanCount(static_cast<double>(NumParameters(recipe->model))) << " parameters, "
            << recipe->total_steps << " steps of " << HumanCount(static_cast<double>(recipe->tokens_per_step))
            << " tokens, " << recipe->num_microbatches << " microbatches per rank and step\n";
  for (int rank = 0; rank < recipe->schedule.num_ranks(); ++rank) {
    std::cout << "# memory per rank"
              << (recipe->schedule.num_ranks() > 1 ? absl::StrCat(" of pipeline rank ", rank) : "")
              << ", beside the program itself: " << ToString(EstimateMemory(*recipe, rank)) << "\n";
  }
  if (recipe->model.adapter != nullptr) {
    for (const std::string& refusal : VllmRefusals(*recipe->model.adapter))
      std::cout << "# adapter: " << refusal << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddValidateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "validate", "Check a config against a number of ranks and its data, without starting anything");
  command->add_option("CONFIG", flags->configs, "Textproto files, merged left to right")->required();
  command->add_option("--set", flags->overrides, "Override a field, as for train")->allow_extra_args(false);
  command->add_option("--ranks", flags->ranks, "Ranks the job will have")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--without-data", flags->without_data,
                    "Leave the corpora alone: for a plan on paper; model.vocab_size must be given");
  command->callback([flags, &extensions, result] { *result = Run(*flags, extensions); });
}

}  // namespace trireme
