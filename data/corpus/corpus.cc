#include "data/corpus/corpus.h"

#include <absl/strings/match.h>
#include <absl/strings/strip.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "data/corpus/concatenated_stream.h"
#include "data/corpus/foreign_files.h"
#include "data/corpus/indexed_file.h"
#include "data/corpus/llmc_file.h"
#include "data/corpus/manifest.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/file.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::string Join(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

absl::Status CheckShard(const IndexedFile& file, const CorpusShard& shard) {
  const auto mismatch = [&](absl::string_view what, int64_t found, int64_t expected) {
    return Error(ExitCode::kData, "open ", file.description(), ": it has ", found, " ", what, " but its manifest says ",
                 expected, "; rebuild the corpus with `trireme prepare`");
  };
  if (file.bin_bytes() != shard.bin_bytes()) return mismatch("bytes", file.bin_bytes(), shard.bin_bytes());
  if (file.num_tokens() != shard.num_tokens()) return mismatch("tokens", file.num_tokens(), shard.num_tokens());
  if (file.num_documents() != shard.num_documents())
    return mismatch("documents", file.num_documents(), shard.num_documents());
  return absl::OkStatus();
}

absl::Status VerifyDigest(const std::string& path, const std::string& expected, int64_t* bytes_done,
                          Progress* progress) {
  uint64_t size = 0;
  ASSIGN_OR_RETURN(const Digest digest, HashFile(path, [&](uint64_t done) {
                     size = done;
                     progress->Update(*bytes_done + static_cast<int64_t>(done));
                   }));
  *bytes_done += static_cast<int64_t>(size);
  if (expected.empty() || digest == expected) return absl::OkStatus();
  return Error(ExitCode::kData, "verify ", path, ": its digest is ", digest, " but its manifest says ", expected,
               "; the file is damaged, copy it again or rebuild the corpus with `trireme prepare`");
}

absl::Status VerifyDigests(const CorpusManifest& manifest, const std::string& folder) {
  int64_t total = 0, done = 0;
  for (const CorpusSplit& split : manifest.split()) {
    for (const CorpusShard& shard : split.shard()) {
      for (const char* extension : {".bin", ".idx"}) {
        std::error_code error;
        const uintmax_t size = fs::file_size(Join(folder, shard.name() + extension), error);
        if (!error) total += static_cast<int64_t>(size);
      }
    }
  }
  Progress progress(absl::StrCat("verifying ", folder), total, "B");
  for (const CorpusSplit& split : manifest.split()) {
    for (const CorpusShard& shard : split.shard()) {
      RETURN_IF_ERROR(VerifyDigest(Join(folder, shard.name() + ".bin"), shard.bin_digest(), &done, &progress));
      RETURN_IF_ERROR(VerifyDigest(Join(folder, shard.name() + ".idx"), shard.idx_digest(), &done, &progress));
    }
  }
  progress.Finish();
  return absl::OkStatus();
}

absl::Status CheckTokenizer(const CorpusManifest& manifest, const std::string& path) {
  if (!Exists(path)) {
    return Error(ExitCode::kData, "open ", path,
                 ": it is missing; copy the tokenizer the corpus was made with there (digest ",
                 manifest.tokenizer_digest(), ")");
  }
  ASSIGN_OR_RETURN(const Digest digest, HashFile(path));
  if (digest == manifest.tokenizer_digest()) return absl::OkStatus();
  return Error(ExitCode::kData, "open ", path, ": its digest is ", digest,
               " but the corpus was made with a tokenizer of digest ", manifest.tokenizer_digest(),
               "; put the right file there or rebuild the corpus with `trireme prepare`");
}

absl::StatusOr<Corpus> OpenWithManifest(const std::string& folder, CorpusManifest manifest,
                                        const CorpusOptions& options) {
  Corpus corpus;
  const int64_t vocab_size = options.vocab_size > 0 ? options.vocab_size : manifest.vocab_size();
  if (options.verify_checksums) RETURN_IF_ERROR(VerifyDigests(manifest, folder));
  for (const CorpusSplit& split : manifest.split()) {
    std::vector<std::shared_ptr<const TokenStream>> shards;
    for (const CorpusShard& shard : split.shard()) {
      ASSIGN_OR_RETURN(std::shared_ptr<const IndexedFile> file,
                       IndexedFile::Open(Join(folder, shard.name()), vocab_size));
      RETURN_IF_ERROR(CheckShard(*file, shard));
      shards.push_back(std::move(file));
    }
    if (split.num_tokens() == 0) continue;
    (split.name() == kTrainSplit ? corpus.train : corpus.validation) =
        Concatenate(std::move(shards), absl::StrCat(folder, " (", split.name(), ")"));
  }
  if (corpus.train == nullptr) return Error(ExitCode::kData, "open ", folder, ": its train split holds no tokens");
  if (manifest.has_tokenizer_digest()) {
    corpus.tokenizer_path = FindTokenizer(folder);
    if (corpus.tokenizer_path.empty()) corpus.tokenizer_path = Join(folder, kTokenizerName);
    RETURN_IF_ERROR(CheckTokenizer(manifest, corpus.tokenizer_path));
  }
  corpus.digest = ContentDigest(manifest);
  corpus.manifest = std::move(manifest);
  return corpus;
}

absl::StatusOr<Corpus> OpenForeign(const ForeignFiles& files, const CorpusOptions& options) {
  Corpus corpus;
  std::string digests;
  for (const bool validation : {false, true}) {
    std::vector<std::shared_ptr<const TokenStream>> shards;
    for (const std::string& name : validation ? files.validation : files.train) {
      ASSIGN_OR_RETURN(std::shared_ptr<const IndexedFile> file,
                       IndexedFile::Open(Join(files.folder, name), options.vocab_size));
      ASSIGN_OR_RETURN(const Digest digest, file->Fingerprint());
      absl::StrAppend(&digests, digest, " ");
      shards.push_back(std::move(file));
    }
    if (shards.empty()) continue;
    (validation ? corpus.validation : corpus.train) = Concatenate(std::move(shards), files.folder);
  }
  if (corpus.train == nullptr || corpus.train->num_tokens() == 0) {
    return Error(ExitCode::kData, "open ", files.folder, ": there are no tokens to train on");
  }
  if (corpus.validation != nullptr && corpus.validation->num_tokens() == 0) corpus.validation = nullptr;
  corpus.digest = HashBytes(digests.data(), digests.size());
  return corpus;
}

void WarnForeign(const std::string& path) {
  Warning("corpus ", path, " has no ", kManifestName,
          ": its tokenizer and its checksums are unknown; `trireme prepare --adopt ", path,
          " --tokenizer FILE` writes one");
}

// The manifest beside a Megatron prefix, cut down to that one shard as train split; nothing when it does not list it.
absl::StatusOr<std::optional<CorpusManifest>> ManifestOfShard(const std::string& folder, const std::string& name) {
  if (!Exists(Join(folder, kManifestName))) return std::nullopt;
  ASSIGN_OR_RETURN(CorpusManifest manifest, ReadManifest(Join(folder, kManifestName)));
  for (const CorpusSplit& split : manifest.split()) {
    for (const CorpusShard& shard : split.shard()) {
      if (shard.name() != name) continue;
      CorpusSplit only;
      only.set_name(kTrainSplit);
      only.set_num_documents(shard.num_documents());
      only.set_num_tokens(shard.num_tokens());
      *only.add_shard() = shard;
      manifest.clear_split();
      manifest.clear_unigram_entropy();
      *manifest.add_split() = std::move(only);
      return manifest;
    }
  }
  return std::nullopt;
}

absl::StatusOr<Corpus> OpenFolder(const std::string& path, const CorpusOptions& options) {
  if (Exists(Join(path, kManifestName))) {
    ASSIGN_OR_RETURN(CorpusManifest manifest, ReadManifest(Join(path, kManifestName)));
    return OpenWithManifest(path, std::move(manifest), options);
  }
  ASSIGN_OR_RETURN(const ForeignFiles files, FindForeignFiles(path));
  WarnForeign(path);
  return OpenForeign(files, options);
}

}  // namespace

absl::StatusOr<Corpus> OpenCorpus(const std::string& path, const CorpusOptions& options) {
  std::error_code error;
  if (fs::is_directory(path, error)) return OpenFolder(path, options);
  absl::string_view stem = path;
  if (!absl::ConsumeSuffix(&stem, ".idx")) absl::ConsumeSuffix(&stem, ".bin");
  const std::string prefix(stem);
  if (Exists(prefix + ".idx")) {
    const std::string folder = fs::path(prefix).parent_path().string();
    const std::string name = fs::path(prefix).filename().string();
    ASSIGN_OR_RETURN(std::optional<CorpusManifest> manifest, ManifestOfShard(folder, name));
    if (manifest) return OpenWithManifest(folder, *std::move(manifest), options);
    WarnForeign(path);
    return OpenForeign({folder, {name}, {}}, options);
  }
  if (!Exists(path) && Exists(prefix + ".bin")) {
    return Error(ExitCode::kData, "open corpus ", path, ": there is ", prefix, ".bin but no ", prefix,
                 ".idx; copy it too (an llm.c file is given by its full name)");
  }
  if (!Exists(path)) {
    return Error(ExitCode::kData, "open corpus ", path,
                 ": it does not exist; make it with `trireme prepare --tokenizer FILE --output ", path, " INPUT...`");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const LlmcFile> file, LlmcFile::Open(path, options.vocab_size));
  if (file->num_tokens() == 0) return Error(ExitCode::kData, "open corpus ", path, ": it holds no tokens");
  Warning("corpus ", path, " is an llm.c file: its tokenizer and its checksums are unknown");
  Corpus corpus;
  ASSIGN_OR_RETURN(corpus.digest, file->Fingerprint());
  corpus.train = std::move(file);
  return corpus;
}

}  // namespace trireme
