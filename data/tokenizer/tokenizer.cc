#include "data/tokenizer/tokenizer.h"

#include <filesystem>
#include <mutex>
#include <utility>

#include "data/tokenizer/bpe_cache.h"
#include "data/tokenizer/bpe_file.h"
#include "data/tokenizer/sentencepiece_file.h"
#include "data/tokenizer/tokenizer_folder.h"
#include "data/unicode/unicode.h"

namespace trireme {
namespace {

constexpr char kJsonName[] = "tokenizer.json", kSentencePieceName[] = "tokenizer.model";
constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;

// These are the spellings of published tokenizers. DeepSeek's bars are U+FF5C; the same with ASCII bars is a common
// transcription.
constexpr absl::string_view kEndsOfDocuments[] = {
    "<|endoftext|>",          // GPT-2, Qwen, SmolLM, Phi, GLM
    "<|end_of_text|>",        // Llama 3, Granite
    "<｜end▁of▁sentence｜>",  // DeepSeek
    "<|end▁of▁sentence|>",
    "</s>",         // Llama 2, Mistral
    "<eos>",        // Gemma
    "<EOS_TOKEN>",  // Cohere
    "[EOS]",        // Kimi
    "<|eos|>",
};

// Caches for one thread at a time each: taking one costs a lock per text, not per word.
class CachePool {
 public:
  std::unique_ptr<BpeCache> Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<BpeCache>();
    std::unique_ptr<BpeCache> cache = std::move(idle_.back());
    idle_.pop_back();
    return cache;
  }
  void Return(std::unique_ptr<BpeCache> cache) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(cache));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<BpeCache>> idle_;
};

class EncodingSink : public PieceSink {
 public:
  EncodingSink(const BpeModel& model, BpeCache* cache, std::vector<int32_t>* ids)
      : model_(model), cache_(cache), ids_(ids) {}
  void OnPiece(absl::string_view piece) override { cache_->Encode(model_, piece, ids_); }

 private:
  const BpeModel& model_;
  BpeCache* cache_;
  std::vector<int32_t>* ids_;
};

// The tokens to look for before (`normalized` false) or after normalizing, as they look then.
std::vector<AddedToken> Select(const BpeFile& file, bool normalized) {
  std::vector<AddedToken> selected;
  for (const AddedToken& token : file.added_tokens) {
    if (token.normalized != normalized) continue;
    selected.push_back(token);
    std::string storage;
    if (normalized && !file.added_tokens_are_normalized)
      selected.back().content = std::string(file.normalizer.Apply(token.content, &storage));
  }
  return selected;
}

class BpeTokenizer : public Tokenizer {
 public:
  // `eos`: what the files beside name as the end of a text; may be "".
  BpeTokenizer(BpeFile file, Digest digest, const std::string& eos)
      : file_(std::move(file)),
        digest_(std::move(digest)),
        verbatim_(Select(file_, /*normalized=*/false)),
        normalized_(Select(file_, /*normalized=*/true)) {
    // What the families call the token between documents; a base model's comes before a chat model's.
    for (const absl::string_view name : kEndsOfDocuments) {
      if (end_of_document_ < 0) end_of_document_ = TokenId(name);
    }
    if (end_of_document_ < 0) end_of_document_ = TokenId(eos);
  }

  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const override {
    std::string repaired;
    if (!IsValidUtf8(text)) {
      repaired = RepairUtf8(text);
      text = repaired;
    }
    std::unique_ptr<BpeCache> cache = caches_.Take();
    EncodingSink sink(*file_.model, cache.get(), ids);
    const auto on_token = [ids](int32_t id) { ids->push_back(id); };
    const char* start = text.data();  // of the text, then of its first part once normalized
    absl::Status status;
    const auto on_plain = [&](absl::string_view plain) {
      if (status.ok()) status = file_.pre_tokenizer.Split(plain, /*at_start=*/plain.data() == start, &sink);
    };
    const auto on_text = [&](absl::string_view part) {
      std::string storage;
      const bool at_start = part.data() == text.data();
      part = file_.normalizer.Apply(part, &storage);
      start = at_start ? part.data() : nullptr;
      if (normalized_.empty()) {
        on_plain(part);
      } else {
        normalized_.Split(part, on_plain, on_token);
      }
    };
    if (verbatim_.empty()) {
      on_text(text);
    } else {
      verbatim_.Split(text, on_text, on_token);
    }
    caches_.Return(std::move(cache));
    return status;
  }

  std::string Decode(const std::vector<int32_t>& ids) const override {
    std::string bytes;
    for (const int32_t id : ids) absl::StrAppend(&bytes, TokenBytes(id));
    if (file_.decoder.strips_leading_space() && !bytes.empty() && bytes[0] == ' ') bytes.erase(0, 1);
    return bytes;
  }
  absl::string_view TokenBytes(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? absl::string_view(file_.bytes_of_id[id]) : absl::string_view();
  }
  bool IsSpecial(int32_t id) const override { return file_.special_ids.contains(id); }

  int32_t vocab_size() const override { return static_cast<int32_t>(file_.bytes_of_id.size()); }
  int32_t end_of_document() const override { return end_of_document_; }
  int32_t TokenId(absl::string_view token) const override {
    const auto found = file_.id_of_token.find(token);
    return found == file_.id_of_token.end() ? -1 : found->second;
  }
  const Digest& digest() const override { return digest_; }

 private:
  BpeFile file_;
  Digest digest_;
  AddedTokenFinder verbatim_;
  AddedTokenFinder normalized_;
  int32_t end_of_document_ = -1;
  mutable CachePool caches_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseIn(const TokenizerFolder& folder, const std::string& contents,
                                                   const std::string& name) {
  Digest digest = HashBytes(contents.data(), contents.size());
  absl::StatusOr<BpeFile> file =
      IsSentencePieceFile(contents) ? ParseSentencePieceFile(contents, folder) : ParseBpeFile(contents, folder);
  if (!file.ok()) return Annotate(file.status(), absl::StrCat("tokenizer: ", name));
  return std::unique_ptr<Tokenizer>(new BpeTokenizer(*std::move(file), std::move(digest), folder.eos));
}

}  // namespace

std::string FindTokenizer(const std::string& folder) {
  for (const char* name : {kJsonName, kSentencePieceName}) {
    std::error_code ignored;
    std::string path = (std::filesystem::path(folder) / name).string();
    if (std::filesystem::exists(path, ignored)) return path;
  }
  return "";
}

const char* TokenizerName(absl::string_view contents) {
  return IsSentencePieceFile(contents) ? kSentencePieceName : kJsonName;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const std::string found = FindTokenizer(path);
    return Load(found.empty() ? absl::StrCat(path, "/", kJsonName) : found);
  }
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(path, kMaxFileBytes));
  ASSIGN_OR_RETURN(const TokenizerFolder folder, ReadTokenizerFolder(std::filesystem::path(path).parent_path() / "."));
  return ParseIn(folder, contents, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(const std::string& contents, const std::string& name) {
  return ParseIn(TokenizerFolder(), contents, name);
}

}  // namespace trireme
