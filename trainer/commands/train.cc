#include "trainer/loop/train.h"

#include <cfloat>
#include <memory>

#include "trainer/commands/commands.h"

namespace trireme {

void AddTrainCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "Train a model; start it with mpirun -np N for N ranks");
  command->add_option("CONFIG", options->configs, "Textproto files, merged left to right")->required();
  command
      ->add_option("--set", options->overrides,
                   "Override a field: parallel.tensor=2, data.source+={path: \"x\"}, 'parallel { tensor: 2 }'")
      ->allow_extra_args(false);
  command->add_option("--ranks", options->expected_ranks, "Fail at once unless started with this many ranks")
      ->check(NumberFrom(1, INT32_MAX, "a number of ranks"));
  command->add_flag("--allow-change", options->allow_change,
                    "Resume although the config changed in what alters numbers");
  command->add_option(
      "--check-against", options->check_against,
      "Compare each step's loss and every parameter's gradient norm with those of the run in this run_dir "
      "(made with logging.parameter_norms); stop at the first that differs");
  command->add_option("--check-tolerance", options->check_tolerance, "Relative difference that --check-against allows")
      ->check(NumberFrom(FLT_MIN, FLT_MAX, "a positive number"))
      ->capture_default_str();
  command
      ->add_option("--stop-at", options->stop_at,
                   "Save and end after this step, as if preempted; the same command resumes")
      ->check(NumberFrom(1, INT32_MAX, "a step"));
  command->callback([options, &extensions, result] { *result = Train(*options, extensions); });
}

}  // namespace trireme
