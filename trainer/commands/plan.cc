#include "trainer/recipe/plan.h"

#include <cfloat>
#include <iostream>
#include <memory>

#include "configs/config_loader.h"
#include "launch/base/file.h"
#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/svg.h"
#include "trainer/commands/commands.h"

namespace trireme {
namespace {

struct PlanFlags {
  std::vector<std::string> configs, overrides;
  int ranks = 1;
  PlanOptions options;
  std::string svg, csv;
};

absl::Status ShowPlan(const PlanFlags& flags, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(flags.configs, flags.overrides));
  if (!config.model().has_vocab_size() && !config.model().has_from() && !config.model().has_config())
    return Error(ExitCode::kConfig,
                 "model.vocab_size: not set; plan reads no corpus, so give it here: --set model.vocab_size=4096");
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  ASSIGN_OR_RETURN(const Recipe recipe, MakeRecipe(config, flags.ranks, extensions.families, attention, CorpusFacts()));
  ASSIGN_OR_RETURN(const RunPlan plan, MakePlan(recipe, flags.options));
  std::cout << PlanText(recipe, plan);
  if (!flags.svg.empty()) RETURN_IF_ERROR(WriteFileAtomically(flags.svg, DrawSvg(plan.timeline)));
  if (!flags.csv.empty()) RETURN_IF_ERROR(WriteFileAtomically(flags.csv, PrintCsv(recipe.engine.schedule)));
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "Simulate a config on a number of ranks: step time, pipeline bubble and memory, without starting anything");
  command->add_option("CONFIG", flags->configs, "Textproto files, merged left to right")->required();
  command->add_option("--set", flags->overrides, "Override a field, as for train")->allow_extra_args(false);
  command->add_option("--ranks", flags->ranks, "Ranks the job will have")
      ->check(NumberFrom(1, INT32_MAX, "a number of ranks"))
      ->capture_default_str();
  command->add_option("--flops", flags->options.flops, "Operations per second that one rank reaches, as 4e14")
      ->check(NumberFrom(FLT_MIN, FLT_MAX, "a positive number"));
  command->add_option("--bandwidth", flags->options.bandwidth, "Bytes per second between pipeline ranks")
      ->check(NumberFrom(FLT_MIN, FLT_MAX, "a positive number"));
  command->add_option("--costs", flags->options.costs_file, "A trace with measured costs: run_dir/trace/step-N.json");
  command->add_option("--schedule-svg", flags->svg, "Draw the simulated schedule into this file");
  command->add_option("--schedule-csv", flags->csv, "Write the schedule in PyTorch's pipelining dialect");
  command->callback([flags, &extensions, result] { *result = ShowPlan(*flags, extensions); });
}

}  // namespace trireme
