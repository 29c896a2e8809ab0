// trainer/commands/commands.h
// The verbs of the `trireme` command line. Each Add...Command adds one CLI11 subcommand to `app`; when the user chose
// it, its callback runs the verb and stores the outcome in `*result` (Main() prints the error and exits with its code).
#ifndef TRIREME_TRAINER_COMMANDS_COMMANDS_H_
#define TRIREME_TRAINER_COMMANDS_COMMANDS_H_

#include <CLI/CLI.hpp>

#include "launch/base/status.h"
#include "models/engine/extensions.h"
#include "trainer/evaluate/session.h"

namespace trireme {

void AddPrepareCommand(CLI::App& app, absl::Status* result);
void AddTokenizerCommand(CLI::App& app, absl::Status* result);
void AddInspectCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddTrainCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddValidateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddPlanCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddExportCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddGenerateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddEvaluateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);
void AddConfigCommand(CLI::App& app, absl::Status* result);
void AddCompletionCommand(CLI::App& app);
void AddBenchCommand(CLI::App& app, const Extensions& extensions, absl::Status* result);

// Checks that an option is a number from `least` to `most`; `what` says so, as in "a number from 0 on".
CLI::Validator NumberFrom(double least, double most, const std::string& what);

// SOURCE, --set and --ranks of the verbs that open a model (trainer/evaluate/session.h).
void AddSessionOptions(CLI::App& command, SessionOptions* options);

}  // namespace trireme

#endif  // TRIREME_TRAINER_COMMANDS_COMMANDS_H_
