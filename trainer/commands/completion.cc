#include <iostream>
#include <memory>
#include <string>

#include "trainer/commands/commands.h"
#include "trainer/commands/completion_script.h"

namespace trireme {

void AddCompletionCommand(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("completion", "Print a completion script: eval \"$(trireme completion bash)\"");
  command->add_option("SHELL", *shell, "Whose script")->required()->check(CLI::IsMember({"bash", "zsh"}));
  command->callback([shell, &app] { std::cout << (*shell == "bash" ? BashCompletion(app) : ZshCompletion(app)); });
}

}  // namespace trireme
