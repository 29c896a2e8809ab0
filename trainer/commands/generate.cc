#include "trainer/evaluate/generate.h"

#include <cfloat>
#include <cstdint>
#include <memory>

#include "trainer/commands/commands.h"

namespace trireme {

void AddSessionOptions(CLI::App& command, SessionOptions* options) {
  command
      .add_option(
          "SOURCE", options->source,
          "A run_dir, a checkpoint's step folder, a Hugging Face directory or ORG/NAME in its cache, or a GGUF file")
      ->required();
  command.add_option("--adapter", options->adapter,
                     "An adapter to put on it: a PEFT directory, or a run_dir or checkpoint that trained one");
  command.add_option("--set", options->overrides, "Set a field: parallel.tensor=2, precision.compute=BF16, ...")
      ->allow_extra_args(false);
  command.add_option("--ranks", options->expected_ranks, "Fail at once unless started with this many ranks")
      ->check(NumberFrom(1, INT32_MAX, "a number of ranks"));
}

void AddGenerateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Continue a prompt; the text goes to standard output as it comes (a terminal shows its control "
      "characters as \\x1B and the like, files and pipes get it as it is)");
  AddSessionOptions(*command, &options->session);
  CLI::Option_group* prompt = command->add_option_group("prompt");
  CLI::Option* text = prompt->add_option("--prompt", options->prompt, "The text to go on from");
  prompt->add_option("--prompt-ids", options->prompt_ids, "Its token ids, as in 1,2,3")
      ->delimiter(',')
      ->check(NumberFrom(0, INT32_MAX, "a token id"));
  prompt->require_option(1);
  CLI::Option* chat =
      command->add_flag("--chat", options->chat, "The prompt is a user's message: apply the model's chat template")
          ->needs(text);
  command->add_option("--system", options->system, "With --chat: the system message in place of the template's own")
      ->needs(chat);
  command->add_option("--max-tokens", options->max_tokens, "Most tokens to add")
      ->check(NumberFrom(1, INT32_MAX, "a number from 1 on"))
      ->capture_default_str();
  SamplingOptions& sampling = options->sampling;
  command->add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->check(NumberFrom(0, FLT_MAX, "a number from 0 on"))
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Choose among this many of the likeliest; 0: all")
      ->check(NumberFrom(0, INT32_MAX, "a whole number from 0 on"))
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Choose among the likeliest that together are this likely")
      ->check(NumberFrom(0, 1, "a number from 0 to 1"))
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "The same seed gives the same text on any mesh")->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on past the model's end-of-sequence tokens");
  CLI::Option* ids = command->add_flag("--print-ids", options->print_ids, "Print token ids in place of text");
  command
      ->add_flag("--json", options->json,
                 "Print one JSON line at the end: prompt_ids, ids, log_probabilities, finish, rates, text")
      ->excludes(ids);
  command->callback([options, &extensions, result] { *result = Generate(*options, extensions); });
}

}  // namespace trireme
