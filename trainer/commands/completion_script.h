// trainer/commands/completion_script.h
// Shell completion, made from the command line's own description: a new verb or option is completed without anything to
// be added here.
#ifndef TRIREME_TRAINER_COMMANDS_COMPLETION_SCRIPT_H_
#define TRIREME_TRAINER_COMMANDS_COMPLETION_SCRIPT_H_

#include <CLI/CLI.hpp>
#include <string>

namespace trireme {

// A script that bash, or zsh, evaluates. It completes verbs, options, the values of options that allow only a few, the
// fields of a recipe (for --set and FIELD), and file names wherever else text is expected. Neither script starts the
// program.
std::string BashCompletion(const CLI::App& app);
std::string ZshCompletion(const CLI::App& app);

}  // namespace trireme

#endif  // TRIREME_TRAINER_COMMANDS_COMPLETION_SCRIPT_H_
