#include "data/corpus/manifest.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <set>

namespace trireme {
namespace {

constexpr int kFormatVersion = 1;
constexpr uint64_t kMaxManifestBytes = 64 << 20;

// Keeps the first error, with the position as editors count it.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text_.empty()) text_ = absl::StrCat(line + 1, ":", column + 1, ": ", message);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

bool IsPlainFileName(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 200) return false;
  for (const char c : name) {
    if (c == '/' || static_cast<unsigned char>(c) < 0x20) return false;
  }
  return true;
}

// total += value unless value is negative or the sum overflows.
bool AddCount(int64_t value, int64_t* total) { return value >= 0 && !__builtin_add_overflow(*total, value, total); }

absl::Status CheckSplit(const CorpusSplit& split, std::set<std::string>* shard_names) {
  int64_t documents = 0, tokens = 0;
  for (const CorpusShard& shard : split.shard()) {
    if (!IsPlainFileName(shard.name())) {
      return Error(ExitCode::kData, "shard name \"", shard.name(), "\" is not a plain file name");
    }
    if (!shard_names->insert(shard.name()).second)
      return Error(ExitCode::kData, "shard \"", shard.name(), "\" is listed twice");
    if (!AddCount(shard.num_documents(), &documents) || !AddCount(shard.num_tokens(), &tokens) ||
        shard.bin_bytes() < 0) {
      return Error(ExitCode::kData, "shard \"", shard.name(), "\" has impossible counts");
    }
  }
  if (documents != split.num_documents() || tokens != split.num_tokens()) {
    return Error(ExitCode::kData, "split \"", split.name(), "\" says ", split.num_documents(), " documents and ",
                 split.num_tokens(), " tokens, its shards add up to ", documents, " and ", tokens);
  }
  return absl::OkStatus();
}

absl::Status CheckManifest(const CorpusManifest& manifest) {
  if (manifest.version() < 1 || manifest.version() > kFormatVersion) {
    return Error(ExitCode::kData, "format version ", manifest.version(), ", this program reads up to ", kFormatVersion);
  }
  if (manifest.vocab_size() < 0) return Error(ExitCode::kData, "vocab_size is ", manifest.vocab_size());
  std::set<std::string> split_names, shard_names;
  for (const CorpusSplit& split : manifest.split()) {
    if (split.name() != kTrainSplit && split.name() != kValidationSplit) {
      return Error(ExitCode::kData, "unknown split \"", split.name(), "\" (there are \"", kTrainSplit, "\" and \"",
                   kValidationSplit, "\")");
    }
    if (!split_names.insert(split.name()).second)
      return Error(ExitCode::kData, "split \"", split.name(), "\" is there twice");
    RETURN_IF_ERROR(CheckSplit(split, &shard_names));
  }
  if (split_names.count(kTrainSplit) == 0) return Error(ExitCode::kData, "there is no split \"", kTrainSplit, "\"");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CorpusManifest> ReadManifest(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxManifestBytes));
  CorpusManifest manifest;
  google::protobuf::TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(text, &manifest)) {
    return Error(ExitCode::kData, path, ":", error.text(),
                 "; the manifest is damaged, rebuild the corpus with `trireme prepare`");
  }
  RETURN_IF_ERROR(Annotate(CheckManifest(manifest), path));
  return manifest;
}

std::string FormatManifest(const CorpusManifest& manifest) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(manifest, &text);
  return absl::StrCat("# proto-file: data/corpus/manifest.proto\n# proto-message: CorpusManifest\n", text);
}

Digest ContentDigest(const CorpusManifest& manifest) {
  std::string text;
  for (const CorpusSplit& split : manifest.split()) {
    absl::StrAppend(&text, split.name(), ":");
    for (const CorpusShard& shard : split.shard()) {
      absl::StrAppend(&text, " ", shard.num_documents(), " ", shard.num_tokens(), " ", shard.bin_digest(), " ",
                      shard.idx_digest());
    }
    text += '\n';
  }
  return HashBytes(text.data(), text.size());
}

}  // namespace trireme
