#include "data/prepare/prepare.h"

#include <absl/strings/escaping.h>

#include <map>
#include <memory>
#include <string>

#include "data/corpus/adopt.h"
#include "trainer/commands/commands.h"

namespace trireme {
namespace {

struct PrepareFlags {
  PrepareOptions prepare;
  std::string delimiter;  // as typed, with \n and the like
  std::string adopt;
};

absl::Status RunPrepare(PrepareFlags flags) {
  if (!flags.adopt.empty()) {
    if (!flags.prepare.inputs.empty() || !flags.prepare.output.empty()) {
      return Error(
          ExitCode::kConfig,
          "prepare: --adopt describes token files that are there already; it takes neither INPUT nor --output");
    }
    return Adopt({flags.adopt, flags.prepare.tokenizer, flags.prepare.overwrite});
  }
  std::string why;
  if (!absl::CUnescape(flags.delimiter, &flags.prepare.text.delimiter, &why)) {
    return Error(ExitCode::kConfig, "prepare: --delimiter ", flags.delimiter, ": ", why);
  }
  return Prepare(flags.prepare);
}

}  // namespace

void AddPrepareCommand(CLI::App& app, absl::Status* result) {
  auto flags = std::make_shared<PrepareFlags>();
  PrepareOptions& options = flags->prepare;
  CLI::App* command = app.add_subcommand("prepare", "Tokenize text into a corpus");
  command->add_option(
      "INPUT", options.inputs,
      "Text files, .jsonl files, folders of them, or - for standard input; .gz and .zst are read as they are");
  command
      ->add_option("--tokenizer", options.tokenizer, "tokenizer.json or tokenizer.model to use; copied into the corpus")
      ->required();
  command->add_option("--output", options.output, "Folder to make; appears only when it is whole");
  const std::map<std::string, TextFormat> formats = {
      {"auto", TextFormat::kByName}, {"text", TextFormat::kPlain}, {"jsonl", TextFormat::kJsonLines}};
  command->add_option("--format", options.text.format, "Of the inputs; auto goes by their names")
      ->transform(CLI::CheckedTransformer(formats))
      ->default_str("auto");
  command->add_option("--text-field", options.text.text_field, "Field of each JSON line that holds the text")
      ->capture_default_str();
  command->add_option(
      "--delimiter", flags->delimiter,
      "What separates documents in plain text, for example '\\n\\n'. Default: each file is one document");
  command
      ->add_option("--validation-fraction", options.validation_fraction, "Share of documents for the validation split")
      ->capture_default_str();
  command->add_option("--shard-tokens", options.shard_tokens, "Most tokens in one shard")->capture_default_str();
  command->add_option("--threads", options.threads, "Threads that tokenize. 0: one per core")->capture_default_str();
  command->add_flag("--overwrite", options.overwrite, "Replace a corpus that is there already");
  command->add_option(
      "--adopt", flags->adopt,
      "Megatron prefix or folder: check its tokens against --tokenizer and write the manifest it lacks");
  command->callback([flags, result] { *result = RunPrepare(*flags); });
}

}  // namespace trireme
