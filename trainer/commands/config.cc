#include <iostream>
#include <memory>
#include <string>

#include "configs/config_loader.h"
#include "trainer/commands/commands.h"

namespace trireme {

void AddConfigCommand(CLI::App& app, absl::Status* result) {
  auto field = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("config", "Explain the fields of a recipe: meaning, type, default, members");
  command->add_option("FIELD", *field, "A field as optimizer.adamw.learning_rate; without it, all");
  command->callback([field, result] {
    const absl::StatusOr<std::string> text = ExplainField(*field);
    *result = text.status();
    if (text.ok()) std::cout << *text;
  });
}

}  // namespace trireme
