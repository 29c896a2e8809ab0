#include "data/prepare/prepare.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "data/corpus/manifest.h"
#include "data/corpus/output_folder.h"
#include "data/corpus/split_writer.h"
#include "data/corpus/unigram_counts.h"
#include "data/prepare/tokenize_pipeline.h"
#include "data/sampling/permutation.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/tokenizer_folder.h"
#include "launch/base/file.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

constexpr int kMaxThreads = 1024;

absl::Status CheckOptions(const PrepareOptions& options) {
  const auto refuse = [](const auto&... what) { return Error(ExitCode::kConfig, "prepare: ", what...); };
  if (options.inputs.empty()) return refuse("no input; give text files, folders, or - for standard input");
  if (options.output.empty()) return refuse("no output folder; give one with --output");
  if (options.tokenizer.empty())
    return refuse(
        "no tokenizer; give a tokenizer.json or tokenizer.model with --tokenizer, or train one with `trireme tokenizer "
        "train`");
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    return refuse("--validation-fraction is ", options.validation_fraction, "; it must be at least 0 and below 1");
  }
  if (options.shard_tokens <= 0) return refuse("--shard-tokens is ", options.shard_tokens, "; it must be positive");
  if (options.threads < 0 || options.threads > kMaxThreads)
    return refuse("--threads is ", options.threads, "; give 0 (one per core) to ", kMaxThreads);
  return absl::OkStatus();
}

// What decides the content, for the manifest: not threads, and not where the output goes.
std::string CommandOf(const PrepareOptions& options) {
  constexpr size_t kMaxInputs = 16;
  std::string command = absl::StrCat("trireme prepare --tokenizer ", options.tokenizer, " --validation-fraction ",
                                     options.validation_fraction, " --shard-tokens ", options.shard_tokens);
  if (options.text.format != TextFormat::kPlain) absl::StrAppend(&command, " --text-field ", options.text.text_field);
  if (options.text.format != TextFormat::kByName)
    absl::StrAppend(&command, " --format ", options.text.format == TextFormat::kPlain ? "text" : "jsonl");
  if (!options.text.delimiter.empty())
    absl::StrAppend(&command, " --delimiter \"", absl::CEscape(options.text.delimiter), "\"");
  for (size_t i = 0; i < options.inputs.size() && i < kMaxInputs; ++i)
    absl::StrAppend(&command, " ", options.inputs[i]);
  if (options.inputs.size() > kMaxInputs) absl::StrAppend(&command, " ... (", options.inputs.size(), " inputs)");
  return command;
}

// The state of one run: what has been written so far.
class CorpusWriter {
 public:
  CorpusWriter(const PrepareOptions& options, const std::string& folder, const Tokenizer& tokenizer)
      : validation_fraction_(options.validation_fraction),
        train_(folder, kTrainSplit, tokenizer.vocab_size(), options.shard_tokens),
        validation_(folder, kValidationSplit, tokenizer.vocab_size(), options.shard_tokens),
        train_counts_(tokenizer.vocab_size()) {}

  absl::Status Add(const TokenBatch& batch) {
    int64_t begin = 0;
    for (const int64_t end : batch.document_ends) {
      const int32_t* ids = batch.ids.data() + begin;
      const bool validation = InValidation(num_documents_++, validation_fraction_);
      if (!validation) train_counts_.Add(ids, end - begin);
      RETURN_IF_ERROR((validation ? validation_ : train_).AddDocument(ids, end - begin));
      begin = end;
    }
    text_bytes_ += batch.text_bytes;
    return absl::OkStatus();
  }

  absl::Status Finish(CorpusManifest* manifest) {
    if (num_documents_ == 0) return Error(ExitCode::kData, "prepare: the inputs hold no text");
    RETURN_IF_ERROR(train_.Finish());
    RETURN_IF_ERROR(validation_.Finish());
    *manifest->add_split() = train_.summary();
    if (validation_.summary().num_documents() > 0) *manifest->add_split() = validation_.summary();
    manifest->set_unigram_entropy(train_counts_.Entropy());
    manifest->set_text_bytes(text_bytes_);
    return absl::OkStatus();
  }

 private:
  double validation_fraction_;
  SplitWriter train_;
  SplitWriter validation_;
  UnigramCounts train_counts_;
  int64_t num_documents_ = 0;
  int64_t text_bytes_ = 0;
};

absl::Status WriteCorpus(const PrepareOptions& options, const Tokenizer& tokenizer, TextReader* reader,
                         const std::string& folder, CorpusManifest* manifest) {
  const int threads = options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  CorpusWriter writer(options, folder, tokenizer);
  Progress progress("prepare: text", reader->bytes_total(), "B");
  {
    TokenizePipeline pipeline(reader, &tokenizer, threads);
    TokenBatch batch;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, pipeline.Next(&batch));
      if (!more) break;
      RETURN_IF_ERROR(writer.Add(batch));
      progress.Update(batch.bytes_done);
    }
  }
  progress.Finish();
  manifest->set_version(1);
  manifest->set_tokenizer_digest(tokenizer.digest());
  manifest->set_vocab_size(tokenizer.vocab_size());
  manifest->set_end_of_document(tokenizer.end_of_document());
  manifest->set_created_by(CommandOf(options));
  return writer.Finish(manifest);
}

void PrintSummary(const CorpusManifest& manifest, const std::string& output) {
  int64_t tokens = 0;
  for (const CorpusSplit& split : manifest.split()) {
    tokens += split.num_tokens();
    Info(output, ": ", split.name(), ": ", split.num_documents(), " documents, ", split.num_tokens(), " tokens in ",
         split.shard_size(), " shards");
  }
  Info(output, absl::StrFormat(": %.3f bytes of text per token; unigram entropy of train %.4f nat per token",
                               static_cast<double>(manifest.text_bytes()) / static_cast<double>(tokens),
                               manifest.unigram_entropy()));
}

}  // namespace

bool InValidation(int64_t document, double fraction) {
  if (fraction <= 0 || document <= 1) return fraction > 0 && document == 1;
  constexpr uint64_t kSplitStream = 0x73706c6974;  // Keeps this apart from other uses of the same hash.
  const uint64_t hash = MixKeys({kSplitStream, static_cast<uint64_t>(document)});
  return static_cast<double>(hash >> 11) * 0x1p-53 < fraction;
}

absl::Status Prepare(const PrepareOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  const std::string found = FindTokenizer(options.tokenizer);  // in a folder
  const std::string tokenizer_path = found.empty() ? options.tokenizer : found;
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(tokenizer_path));
  if (tokenizer->end_of_document() < 0) {
    return Error(ExitCode::kData, "prepare: ", options.tokenizer,
                 " has no end-of-document token (<|endoftext|> or the like), so documents could not be told apart; use "
                 "a tokenizer that has one");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<TextReader> reader, TextReader::Open(options.inputs, options.text));
  ASSIGN_OR_RETURN(std::unique_ptr<OutputFolder> output, OutputFolder::Create(options.output, options.overwrite));

  CorpusManifest manifest;
  RETURN_IF_ERROR(WriteCorpus(options, *tokenizer, reader.get(), output->path(), &manifest));
  const std::filesystem::path folder(output->path());
  ASSIGN_OR_RETURN(const std::string tokenizer_file, ReadFile(tokenizer_path));
  if (HashBytes(tokenizer_file.data(), tokenizer_file.size()) != tokenizer->digest()) {
    return Error(ExitCode::kData, "prepare: ", options.tokenizer, " changed while it was in use; start again");
  }
  RETURN_IF_ERROR(WriteFileAtomically((folder / TokenizerName(tokenizer_file)).string(), tokenizer_file));
  RETURN_IF_ERROR(
      CopyTokenizerFolder(std::filesystem::path(tokenizer_path).parent_path() / ".", folder, tokenizer_file));
  RETURN_IF_ERROR(WriteFileAtomically((folder / kManifestName).string(), FormatManifest(manifest)));
  RETURN_IF_ERROR(output->Publish());
  PrintSummary(manifest, output->final_path());
  if (manifest.split_size() == 1 && options.validation_fraction > 0) {
    Warning(
        "prepare: a single document, so there is no validation split; cut plain text into documents with --delimiter");
  }
  return absl::OkStatus();
}

}  // namespace trireme
