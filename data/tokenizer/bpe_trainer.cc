#include "data/tokenizer/bpe_trainer.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "data/tokenizer/bpe_merge_finder.h"
#include "data/tokenizer/bpe_word_counter.h"
#include "data/unicode/bpe_bytes.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

using nlohmann::ordered_json;

// The vocabulary being learned.
struct Vocabulary {
  std::vector<std::string> tokens;  // spelled as in the file, by id
  absl::flat_hash_map<std::string, int32_t> ids;
  std::vector<BpeMergeFinder::Pair> merges;  // by rank

  int32_t Add(const std::string& token) {
    const auto [entry, is_new] = ids.emplace(token, static_cast<int32_t>(tokens.size()));
    if (is_new) tokens.push_back(token);
    return entry->second;
  }
};

// The special token, then the bytes in the order of the characters that stand for them. Returns each byte's id.
std::array<int32_t, 256> AddAlphabet(const std::string& special_token, Vocabulary* vocabulary) {
  vocabulary->Add(special_token);
  std::array<uint16_t, 256> characters = ByteCharacters();
  std::array<int32_t, 256> ids;
  std::array<int, 256> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes[byte] = byte;
  std::sort(bytes.begin(), bytes.end(), [&](int a, int b) { return characters[a] < characters[b]; });
  for (const int byte : bytes) {
    const char c = static_cast<char>(byte);
    ids[byte] = vocabulary->Add(SpellBytes(absl::string_view(&c, 1)));
  }
  return ids;
}

BpeMergeFinder MakeFinder(const std::vector<std::pair<std::string, int64_t>>& words,
                          const std::array<int32_t, 256>& byte_ids) {
  std::vector<int32_t> ids;
  std::vector<int64_t> begins = {0};
  std::vector<int64_t> counts;
  for (const auto& [word, count] : words) {
    for (const char byte : word) ids.push_back(byte_ids[static_cast<uint8_t>(byte)]);
    begins.push_back(static_cast<int64_t>(ids.size()));
    counts.push_back(count);
  }
  return BpeMergeFinder(std::move(ids), std::move(begins), std::move(counts));
}

void LearnMerges(const BpeTrainerOptions& options, BpeMergeFinder* finder, Vocabulary* vocabulary) {
  Progress progress("tokenizer: learning merges", options.vocab_size, "tokens");
  absl::flat_hash_map<BpeMergeFinder::Pair, size_t> rank_of;
  std::vector<BpeMergeFinder::Pair> merges;
  BpeMergeFinder::Pair pair;
  while (static_cast<int64_t>(vocabulary->tokens.size()) < options.vocab_size &&
         finder->Find(options.min_frequency, &pair)) {
    const int32_t result = vocabulary->Add(vocabulary->tokens[pair.first] + vocabulary->tokens[pair.second]);
    // A token made in two ways ("ab"+"c", "a"+"bc") can bring a pair back; then its last rank counts, as in the
    // package.
    rank_of[pair] = merges.size();
    merges.push_back(pair);
    finder->Merge(result);
    progress.Update(static_cast<int64_t>(vocabulary->tokens.size()));
  }
  progress.Finish();
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    if (rank_of[merges[rank]] == rank) vocabulary->merges.push_back(merges[rank]);
  }
}

ordered_json ByteLevel() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
}

std::string ToJson(const Vocabulary& vocabulary) {
  ordered_json vocab = ordered_json::object();
  auto& entries = vocab.get_ref<ordered_json::object_t&>();
  entries.reserve(vocabulary.tokens.size());
  // Appended as a vector: looking each key up first, as operator[] does, takes quadratic time.
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) entries.push_back({vocabulary.tokens[id], id});
  ordered_json merges = ordered_json::array();
  for (const auto& [left, right] : vocabulary.merges)
    merges.push_back({vocabulary.tokens[left], vocabulary.tokens[right]});
  const ordered_json special = {{"id", 0},
                                {"content", vocabulary.tokens[0]},
                                {"single_word", false},
                                {"lstrip", false},
                                {"rstrip", false},
                                {"normalized", false},
                                {"special", true}};
  ordered_json model = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false}};
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(merges);
  ordered_json root = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  root["added_tokens"] = ordered_json::array({special});
  root["normalizer"] = nullptr;
  root["pre_tokenizer"] = ByteLevel();
  root["post_processor"] = ByteLevel();
  root["decoder"] = ByteLevel();
  root["model"] = std::move(model);
  return root.dump(1) + "\n";
}

}  // namespace

absl::StatusOr<std::string> TrainBpe(const DocumentSource& source, const BpeTrainerOptions& options) {
  constexpr int64_t kMinVocab = 257;
  constexpr int64_t kMaxVocab = int64_t{1} << 24;
  if (options.vocab_size < kMinVocab || options.vocab_size > kMaxVocab) {
    return Error(ExitCode::kConfig, "tokenizer: a vocabulary of ", options.vocab_size, " is outside ", kMinVocab,
                 " to ", kMaxVocab, "; it holds ", options.special_token, " and 256 bytes before the first merge");
  }
  Vocabulary vocabulary;
  const std::array<int32_t, 256> byte_ids = AddAlphabet(options.special_token, &vocabulary);
  if (options.special_token.empty() || vocabulary.tokens.size() != kMinVocab) {
    return Error(ExitCode::kConfig, "tokenizer: \"", options.special_token,
                 "\" cannot be the special token: it is empty or a byte");
  }
  ASSIGN_OR_RETURN(auto words, CountWords(source, options.num_threads));
  if (words.empty()) return Error(ExitCode::kData, "tokenizer: the inputs hold no text to learn from");
  if (words.size() >= uint64_t{1} << 32)
    return Error(ExitCode::kData, "tokenizer: ", words.size(), " different words are too many; train on a sample");
  BpeMergeFinder finder = MakeFinder(words, byte_ids);
  Info("tokenizer: ", HumanCount(words.size()), " different words");
  words = {};
  LearnMerges(options, &finder, &vocabulary);
  if (static_cast<int64_t>(vocabulary.tokens.size()) < options.vocab_size) {
    Warning("tokenizer: the text gives only ", vocabulary.tokens.size(), " of ", options.vocab_size,
            " tokens (pairs seen ", options.min_frequency, " times or more)");
  }
  return ToJson(vocabulary);
}

}  // namespace trireme
