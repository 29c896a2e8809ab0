#include "trainer/loop/bench.h"

#include <memory>

#include "trainer/commands/commands.h"

namespace trireme {

void AddBenchCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand("bench", "Time the training step on synthetic tokens; prints one JSON line");
  command->add_option("CONFIG", options->configs, "Textproto files, merged left to right")->required();
  command->add_option("--set", options->overrides, "Override a field, as for train")->allow_extra_args(false);
  command->add_option("--steps", options->steps, "Steps to time")
      ->check(NumberFrom(1, INT32_MAX, "a number from 1 on"))
      ->capture_default_str();
  command->add_option("--warmup", options->warmup, "Steps before them")
      ->check(NumberFrom(0, INT32_MAX, "a number from 0 on"))
      ->capture_default_str();
  command->add_option("--ranks", options->expected_ranks, "Fail at once unless started with this many ranks")
      ->check(NumberFrom(1, INT32_MAX, "a number of ranks"));
  command->callback([options, &extensions, result] { *result = Bench(*options, extensions); });
}

}  // namespace trireme
