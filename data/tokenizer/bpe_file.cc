#include "data/tokenizer/bpe_file.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "data/tokenizer/tokenizer_folder.h"
#include "data/unicode/bpe_bytes.h"
#include "data/unicode/unicode.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;
constexpr int32_t kMaxId = (1 << 24) - 1;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return Error(ExitCode::kData, args...);
}

// At most 60 bytes of a name from the file, for messages.
std::string Shown(absl::string_view text) {
  return text.size() <= 60 ? absl::StrCat("\"", text, "\"") : absl::StrCat("\"", text.substr(0, 60), "...\"");
}

// Refuses nesting that no tokenizer needs and keys that stand twice, of which JSON readers would silently pick one.
absl::StatusOr<json> ParseFile(absl::string_view contents) {
  JsonProblem problem;
  std::optional<json> parsed = ParseJson<json>(contents, {.max_depth = kMaxDepth, .unique_keys = true}, &problem);
  if (parsed.has_value() && !parsed->is_object()) return Bad("not a JSON object");
  if (parsed.has_value()) return *std::move(parsed);
  switch (problem.fault) {
    case JsonFault::kZeroByte:
      return Bad("not valid JSON: it holds a zero byte");
    case JsonFault::kTooDeep:
      return Bad("nested deeper than ", kMaxDepth, " levels");
    case JsonFault::kDuplicateKey:
      return Bad("the key ", Shown(problem.detail), " stands twice in one object");
    case JsonFault::kSyntax:
      break;
  }
  return Bad("not valid JSON");
}

absl::StatusOr<bool> Flag(const json& object, const char* name) {
  const json& field = JsonMember(object, name);
  if (field.is_null()) return false;
  if (!field.is_boolean()) return Bad(name, " is not true or false");
  return JsonBool(field).value_or(false);
}

// What is misspelt would be left out silently.
absl::Status RefuseUnknownKeys(const json& object, const char* where, std::initializer_list<const char*> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      return Bad(where, "the key ", Shown(key), " is not known");
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Id(const json& value, absl::string_view token) {
  const std::optional<uint64_t> id = JsonNatural(value);
  if (!id.has_value() || *id > kMaxId)
    return Bad("the id of token ", Shown(token), " is not a whole number from 0 to ", kMaxId);
  return static_cast<int32_t>(*id);
}

absl::Status CheckModelOptions(const json& model) {
  const json& type = JsonMember(model, "type");
  if (!type.is_null() && type != "BPE")
    return Bad("the model is ", type.is_string() ? Shown(JsonTextOr(type, "")) : "of no type",
               "; only BPE is supported");
  const json& dropout = JsonMember(model, "dropout");
  if (!dropout.is_null() && dropout != 0.0) return Bad("the model has dropout, which is not reproduced");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& affix = JsonMember(model, name);
    if (!affix.is_null() && affix != "") return Bad("the model has ", name, ", which is not supported");
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const json& vocabulary, BpeFile* file) {
  if (!vocabulary.is_object() || vocabulary.empty()) return Bad("model.vocab is not an object with tokens");
  file->id_of_token.reserve(vocabulary.size());
  int32_t largest = 0;
  for (const auto& [token, value] : vocabulary.items()) {
    ASSIGN_OR_RETURN(const int32_t id, Id(value, token));
    file->id_of_token.emplace(token, id);
    largest = std::max(largest, id);
  }
  if (static_cast<size_t>(largest) / 8 > vocabulary.size() + 4096)
    return Bad("the largest id is ", largest, " but there are only ", vocabulary.size(), " tokens");
  file->bytes_of_id.resize(largest + 1);
  std::vector<bool> taken(largest + 1);
  for (const auto& [token, id] : file->id_of_token) {
    if (taken[id]) return Bad("id ", id, " belongs to two tokens, ", Shown(token), " is one of them");
    taken[id] = true;
    file->bytes_of_id[id] = file->decoder.Bytes(token);
  }
  return absl::OkStatus();
}

// Splits "a b", the older form of a merge.
absl::StatusOr<std::pair<std::string, std::string>> MergeParts(const json& merge, size_t rank) {
  if (const json::array_t& parts = JsonList(merge); parts.size() == 2) {
    const std::string *left = JsonText(parts[0]), *right = JsonText(parts[1]);
    if (left != nullptr && right != nullptr) return std::make_pair(*left, *right);
  }
  if (const std::string* text = JsonText(merge)) {
    const size_t space = text->find(' ');
    if (space != std::string::npos && text->find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text->substr(0, space), text->substr(space + 1));
    }
  }
  return Bad("merge ", rank, " is neither \"a b\" nor [\"a\", \"b\"]");
}

absl::StatusOr<std::vector<BpeModel::Merge>> ReadMerges(const json& list, const BpeFile& file) {
  if (!list.is_array()) return Bad("model.merges is not a list");
  std::vector<BpeModel::Merge> merges;
  merges.reserve(list.size());
  for (const json& item : list) {
    if (JsonTextOr(item, "").rfind("#version", 0) == 0) continue;
    ASSIGN_OR_RETURN(const auto parts, MergeParts(item, merges.size()));
    BpeModel::Merge merge;
    for (const auto& [text, id] : {std::pair<std::string, int32_t*>{parts.first, &merge.left},
                                   {parts.second, &merge.right},
                                   {parts.first + parts.second, &merge.result}}) {
      const auto found = file.id_of_token.find(text);
      if (found == file.id_of_token.end())
        return Bad("merge ", merges.size(), " speaks of ", Shown(text), ", which is not in model.vocab");
      *id = found->second;
    }
    merges.push_back(merge);
  }
  return merges;
}

absl::StatusOr<BpeModel::Alphabet> ReadAlphabet(const json& model, const BpeFile& file) {
  BpeModel::Alphabet alphabet;
  ASSIGN_OR_RETURN(const bool byte_fallback, Flag(model, "byte_fallback"));
  const bool byte_level = file.pre_tokenizer.byte_level();
  if (byte_fallback == byte_level)
    return Bad("model.byte_fallback is ", byte_fallback ? "true" : "false", " and the pre_tokenizer is ",
               byte_level ? "" : "not ", "ByteLevel; either of the two is supported, not both and not none");
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const std::string token = byte_level ? SpellBytes(absl::string_view(&c, 1)) : ByteToken(byte);
    const auto found = file.id_of_token.find(token);
    alphabet.byte_ids[byte] = found == file.id_of_token.end() ? -1 : found->second;
    if (byte_fallback && found == file.id_of_token.end())
      return Bad("model.vocab has no token ", token, "; byte_fallback is supported with all bytes only");
  }
  if (byte_fallback) {
    for (const auto& [token, id] : file.id_of_token) {
      const char* next;
      if (token.empty()) continue;
      const uint32_t character = DecodeUtf8(token.data(), &next);
      if (next == token.data() + token.size()) alphabet.character_ids.emplace(character, id);
    }
  }
  const json& unknown = JsonMember(model, "unk_token");
  if (!unknown.is_null()) {
    if (!unknown.is_string()) return Bad("model.unk_token is not a string");
    const std::string token = JsonTextOr(unknown, "");
    const auto found = file.id_of_token.find(token);
    if (found == file.id_of_token.end()) return Bad("model.unk_token ", Shown(token), " is not in model.vocab");
    alphabet.unknown_id = found->second;
  }
  ASSIGN_OR_RETURN(alphabet.fuse_unknown, Flag(model, "fuse_unk"));
  return alphabet;
}

absl::Status ReadModel(const json& model, BpeFile* file) {
  if (!model.is_object()) return Bad("model is missing");
  RETURN_IF_ERROR(RefuseUnknownKeys(model, "model: ",
                                    {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                     "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  RETURN_IF_ERROR(CheckModelOptions(model));
  RETURN_IF_ERROR(ReadVocabulary(JsonMember(model, "vocab"), file));
  ASSIGN_OR_RETURN(const std::vector<BpeModel::Merge> merges, ReadMerges(JsonMember(model, "merges"), *file));
  ASSIGN_OR_RETURN(BpeModel::Alphabet alphabet, ReadAlphabet(model, *file));
  ASSIGN_OR_RETURN(const bool ignore_merges, Flag(model, "ignore_merges"));
  absl::flat_hash_map<std::string, int32_t> whole_words;
  if (ignore_merges) {
    std::string bytes;
    for (const auto& [token, id] : file->id_of_token) {
      if (!file->pre_tokenizer.byte_level()) {
        whole_words.emplace(token, id);
      } else if (UnspellBytes(token, &bytes)) {
        whole_words.emplace(bytes, id);
      }
    }
  } else if (!file->pre_tokenizer.byte_level() && MergesStayWithinWords(merges, *file)) {
    file->pre_tokenizer.CutBeforeMetaspaces();
  }
  file->model = std::make_unique<BpeModel>(std::move(alphabet), merges, std::move(whole_words));
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const json& list, BpeFile* file) {
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) return Bad("added_tokens is not a list");
  // The reference numbers tokens that the model lacks itself, in this way; a file that says otherwise is not one it
  // wrote.
  auto next_id = static_cast<int32_t>(file->id_of_token.size());
  std::unordered_set<std::string> seen;
  for (const json& item : list) {
    AddedToken token;
    const std::string* content = JsonText(JsonMember(item, "content"));
    if (content == nullptr) return Bad("added_tokens: an entry has no content");
    token.content = *content;
    RETURN_IF_ERROR(RefuseUnknownKeys(
        item, "added_tokens: ", {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
    if (token.content.empty()) return Bad("added_tokens: an entry has empty content");
    if (!seen.insert(token.content).second) return Bad("added_tokens: ", Shown(token.content), " stands twice");
    ASSIGN_OR_RETURN(token.id, Id(JsonMember(item, "id"), token.content));
    ASSIGN_OR_RETURN(token.lstrip, Flag(item, "lstrip"));
    ASSIGN_OR_RETURN(token.rstrip, Flag(item, "rstrip"));
    ASSIGN_OR_RETURN(token.normalized, Flag(item, "normalized"));
    ASSIGN_OR_RETURN(token.special, Flag(item, "special"));
    ASSIGN_OR_RETURN(const bool single_word, Flag(item, "single_word"));
    if (single_word) return Bad("added_tokens: ", Shown(token.content), " has single_word, which is not supported");
    const auto known = file->id_of_token.find(token.content);
    const int32_t expected = known != file->id_of_token.end() ? known->second : next_id++;
    if (token.id != expected) {
      return Bad("added_tokens: ", Shown(token.content), " has id ", token.id, " where the reference gives it ",
                 expected);
    }
    if (known == file->id_of_token.end()) {
      if (static_cast<size_t>(token.id) >= file->bytes_of_id.size()) file->bytes_of_id.resize(token.id + 1);
      if (!file->bytes_of_id[token.id].empty())
        return Bad("added_tokens: id ", token.id, " of ", Shown(token.content), " belongs to another token");
      file->bytes_of_id[token.id] = file->decoder.Bytes(token.content);
      file->id_of_token.emplace(token.content, token.id);
    }
    if (token.special) file->special_ids.insert(token.id);
    file->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

}  // namespace

bool MergesStayWithinWords(const std::vector<BpeModel::Merge>& merges, const BpeFile& file) {
  if (!file.id_of_token.contains(kMetaspace)) return false;
  std::vector<absl::string_view> tokens(file.bytes_of_id.size());
  for (const auto& [token, id] : file.id_of_token) tokens[id] = token;
  return std::none_of(merges.begin(), merges.end(), [&tokens](const BpeModel::Merge& merge) {
    return absl::StartsWith(tokens[merge.right], kMetaspace) && !absl::EndsWith(tokens[merge.left], kMetaspace);
  });
}

absl::StatusOr<BpeFile> ParseBpeFile(absl::string_view contents) { return ParseBpeFile(contents, TokenizerFolder()); }

absl::StatusOr<BpeFile> ParseBpeFile(absl::string_view contents, const TokenizerFolder& folder) {
  ASSIGN_OR_RETURN(const json root, ParseFile(contents));
  RETURN_IF_ERROR(RefuseUnknownKeys(root, "",
                                    {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                                     "post_processor", "decoder", "model"}));
  const json& version = JsonMember(root, "version");
  if (!version.is_null() && version != "1.0") return Bad("an unknown version of tokenizer.json");
  BpeFile file;
  ASSIGN_OR_RETURN(file.normalizer, Normalizer::FromJson(JsonMember(root, "normalizer")));
  ASSIGN_OR_RETURN(file.pre_tokenizer, PreTokenizer::FromJson(JsonMember(root, "pre_tokenizer")));
  ASSIGN_OR_RETURN(file.decoder, BpeDecoder::FromJson(JsonMember(root, "decoder")));
  if (file.decoder.byte_level() != file.pre_tokenizer.byte_level())
    return Bad("of decoder and pre_tokenizer only one is ByteLevel, which is not supported");
  RETURN_IF_ERROR(ReadModel(JsonMember(root, "model"), &file));
  RETURN_IF_ERROR(ReadAddedTokens(JsonMember(root, "added_tokens"), &file));
  RETURN_IF_ERROR(AddTokensOfFolder(folder, &file));
  return file;
}

}  // namespace trireme
