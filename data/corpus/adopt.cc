#include "data/corpus/adopt.h"

#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <vector>

#include "data/corpus/foreign_files.h"
#include "data/corpus/indexed_file.h"
#include "data/corpus/manifest.h"
#include "data/corpus/unigram_counts.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/tokenizer_folder.h"
#include "launch/base/file.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<ForeignFiles> FilesOf(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return FindForeignFiles(path);
  absl::string_view stem = path;
  if (!absl::ConsumeSuffix(&stem, ".idx")) absl::ConsumeSuffix(&stem, ".bin");
  const fs::path prefix{std::string(stem)};
  if (!fs::exists(prefix.string() + ".idx", error)) {
    return Error(ExitCode::kData, "adopt ", path, ": neither a folder nor a Megatron prefix (there is no ",
                 prefix.string(), ".idx)");
  }
  return ForeignFiles{prefix.parent_path().string(), {prefix.filename().string()}, {}};
}

// Reads every token once, so that none beyond the vocabulary is left.
absl::Status CountTokens(const IndexedFile& file, UnigramCounts* counts, int64_t* tokens_done, Progress* progress) {
  constexpr int64_t kChunk = 1 << 20;
  std::vector<int64_t> tokens(kChunk);
  for (int64_t begin = 0; begin < file.num_tokens(); begin += kChunk) {
    const int64_t count = std::min(kChunk, file.num_tokens() - begin);
    RETURN_IF_ERROR(file.Read(begin, count, tokens.data()));
    counts->Add(tokens.data(), count);
    progress->Update(*tokens_done += count);
  }
  return absl::OkStatus();
}

absl::Status DescribeSplit(const std::string& folder, const std::vector<std::string>& names, int64_t vocab_size,
                           UnigramCounts* counts, CorpusSplit* split) {
  split->set_num_documents(0);
  split->set_num_tokens(0);
  std::vector<std::shared_ptr<const IndexedFile>> files;
  int64_t total = 0, done = 0;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(files.emplace_back(), IndexedFile::Open((fs::path(folder) / name).string(), vocab_size));
    total += files.back()->num_tokens();
  }
  Progress progress(absl::StrCat("adopt: ", split->name()), total, "tokens");
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string prefix = (fs::path(folder) / names[i]).string();
    RETURN_IF_ERROR(CountTokens(*files[i], counts, &done, &progress));
    CorpusShard* shard = split->add_shard();
    shard->set_name(names[i]);
    shard->set_num_documents(files[i]->num_documents());
    shard->set_num_tokens(files[i]->num_tokens());
    shard->set_bin_bytes(files[i]->bin_bytes());
    ASSIGN_OR_RETURN(*shard->mutable_bin_digest(), HashFile(prefix + ".bin"));
    ASSIGN_OR_RETURN(*shard->mutable_idx_digest(), HashFile(prefix + ".idx"));
    split->set_num_documents(split->num_documents() + shard->num_documents());
    split->set_num_tokens(split->num_tokens() + shard->num_tokens());
  }
  progress.Finish();
  return absl::OkStatus();
}

// Neither a manifest nor another tokenizer is replaced unasked.
absl::Status CheckFree(const fs::path& folder, const Digest& tokenizer_digest, bool overwrite) {
  std::error_code error;
  if (overwrite) return absl::OkStatus();
  const std::string manifest = (folder / kManifestName).string();
  if (fs::exists(manifest, error)) {
    return Error(ExitCode::kConfig, "adopt: ", manifest, " exists already; replace it with --overwrite");
  }
  const std::string tokenizer = FindTokenizer(folder.string());
  if (tokenizer.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Digest digest, HashFile(tokenizer));
  if (digest == tokenizer_digest) return absl::OkStatus();
  return Error(ExitCode::kConfig, "adopt: ", tokenizer,
               " exists already and is another file than --tokenizer; replace it with --overwrite");
}

}  // namespace

absl::Status Adopt(const AdoptOptions& options) {
  ASSIGN_OR_RETURN(const ForeignFiles files, FilesOf(options.path));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.tokenizer));
  const fs::path folder(files.folder);
  RETURN_IF_ERROR(CheckFree(folder, tokenizer->digest(), options.overwrite));

  CorpusManifest manifest;
  manifest.set_version(1);
  manifest.set_tokenizer_digest(tokenizer->digest());
  manifest.set_vocab_size(tokenizer->vocab_size());
  if (tokenizer->end_of_document() >= 0) manifest.set_end_of_document(tokenizer->end_of_document());
  manifest.set_created_by(absl::StrCat("trireme prepare --adopt ", options.path, " --tokenizer ", options.tokenizer));
  UnigramCounts train_counts(tokenizer->vocab_size()), validation_counts(tokenizer->vocab_size());
  CorpusSplit* train = manifest.add_split();
  train->set_name(kTrainSplit);
  RETURN_IF_ERROR(DescribeSplit(files.folder, files.train, tokenizer->vocab_size(), &train_counts, train));
  if (!files.validation.empty()) {
    CorpusSplit* validation = manifest.add_split();
    validation->set_name(kValidationSplit);
    RETURN_IF_ERROR(
        DescribeSplit(files.folder, files.validation, tokenizer->vocab_size(), &validation_counts, validation));
  }
  manifest.set_unigram_entropy(train_counts.Entropy());

  ASSIGN_OR_RETURN(const std::string tokenizer_file, ReadFile(options.tokenizer));
  // One of the other kind would be found first.
  for (std::string old; !(old = FindTokenizer(folder.string())).empty();) RETURN_IF_ERROR(RemoveAll(old));
  RETURN_IF_ERROR(WriteFileAtomically((folder / TokenizerName(tokenizer_file)).string(), tokenizer_file));
  RETURN_IF_ERROR(CopyTokenizerFolder(fs::path(options.tokenizer).parent_path() / ".", folder, tokenizer_file));
  RETURN_IF_ERROR(WriteFileAtomically((folder / kManifestName).string(), FormatManifest(manifest)));
  for (const CorpusSplit& split : manifest.split()) {
    Info("adopted ", split.shard_size(), " shards as ", split.name(), ": ", split.num_documents(), " documents, ",
         split.num_tokens(), " tokens");
  }
  Info(absl::StrFormat("unigram entropy of train %.4f nat per token", manifest.unigram_entropy()));
  return absl::OkStatus();
}

}  // namespace trireme
