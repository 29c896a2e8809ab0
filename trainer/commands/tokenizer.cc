// `trireme tokenizer train`: learns a vocabulary from text files.
#include "data/tokenizer/tokenizer.h"

#include <absl/strings/escaping.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/text/text_reader.h"
#include "data/tokenizer/bpe_trainer.h"
#include "launch/base/file.h"
#include "launch/base/log.h"
#include "trainer/commands/commands.h"

namespace trireme {
namespace {

struct TrainTokenizerOptions {
  std::vector<std::string> inputs;
  std::string output;
  std::string delimiter;  // with escapes
  TextReaderOptions text;
  BpeTrainerOptions bpe;
};

absl::Status TrainTokenizer(TrainTokenizerOptions options) {
  std::string why;
  if (!absl::CUnescape(options.delimiter, &options.text.delimiter, &why)) {
    return Error(ExitCode::kConfig, "tokenizer: --delimiter ", options.delimiter, ": ", why);
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<TextReader> reader, TextReader::Open(options.inputs, options.text));
  ASSIGN_OR_RETURN(const std::string contents,
                   TrainBpe([&reader](std::string* document) { return reader->Next(document); }, options.bpe));
  const std::string folder = std::filesystem::path(options.output).parent_path().string();
  if (!folder.empty()) RETURN_IF_ERROR(MakeDirectories(folder));
  RETURN_IF_ERROR(WriteFileAtomically(options.output, contents));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.output));
  Info("tokenizer: wrote ", options.output, " with ", tokenizer->vocab_size(), " tokens");
  return absl::OkStatus();
}

}  // namespace

void AddTokenizerCommand(CLI::App& app, absl::Status* result) {
  CLI::App* tokenizer = app.add_subcommand("tokenizer", "Work with tokenizers");
  tokenizer->require_subcommand(1);
  CLI::App* train = tokenizer->add_subcommand("train", "Learn a byte-level BPE vocabulary from text");
  auto options = std::make_shared<TrainTokenizerOptions>();
  train
      ->add_option("INPUT", options->inputs,
                   "Text or JSON-lines files, plain or compressed with gzip or zstd, folders of them, or -")
      ->required();
  train->add_option("--output", options->output, "The tokenizer.json to write")->required();
  train->add_option("--vocab-size", options->bpe.vocab_size, "Tokens in all: <|endoftext|>, 256 bytes, then merges")
      ->required();
  train->add_option("--min-frequency", options->bpe.min_frequency, "Do not merge pairs seen less often")
      ->capture_default_str();
  train->add_option("--text-field", options->text.text_field, "The field of each JSON line that holds the text")
      ->capture_default_str();
  train->add_option("--delimiter", options->delimiter,
                    "What separates documents in plain text, for example '\\n\\n'. Default: each file is one document");
  train->add_option("--threads", options->bpe.num_threads, "Threads that count words; 0: one per core")
      ->check(NumberFrom(0, 1024, "a number from 0 to 1024"))
      ->capture_default_str();
  train->callback([options, result] { *result = TrainTokenizer(*options); });
}

}  // namespace trireme
