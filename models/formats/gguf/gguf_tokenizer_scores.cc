#include "models/formats/gguf/gguf_tokenizer_scores.h"

#include <absl/strings/match.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "data/tokenizer/sentencepiece.pb.h"
#include "data/tokenizer/sentencepiece_file.h"
#include "data/unicode/unicode.h"
#include "launch/base/json.h"
#include "models/formats/gguf/gguf_token_type.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr size_t kMaxTokenBytes = 512;  // all ways of cutting a token are looked at

bool IsReplace(const json& step) {
  return step == json{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMetaspace}};
}
bool IsPrepend(const json& step) { return step == json{{"type", "Prepend"}, {"prepend", kMetaspace}}; }
// Gemma's; it finds no space after the normalizer.
bool IsWithoutEffect(const json& step) {
  return JsonMember(step, "type") == "Split" && JsonMember(step, "pattern") == json{{"String", " "}};
}

// Spaces are spelled U+2581, and whether one comes before the text. llama.cpp does nothing else.
absl::StatusOr<bool> SpacePrefix(const json& root) {
  const json &normalizer = JsonMember(root, "normalizer"), &pre = JsonMember(root, "pre_tokenizer");
  json steps = json::array();
  if (!normalizer.is_null())
    steps = JsonMember(normalizer, "type") == "Sequence" ? JsonMember(normalizer, "normalizers")
                                                         : json::array({normalizer});
  bool prefix = false, spells = false;
  for (const json& step : steps) {
    prefix = prefix || IsPrepend(step);
    spells = spells || IsReplace(step);
    if (!IsPrepend(step) && !IsReplace(step))
      return GgufTokenizerError("llama.cpp cannot be told of the normalizer ", DumpJson(step).substr(0, 200));
  }
  if (pre.is_null() || (spells && IsWithoutEffect(pre))) {
    if (!spells) return GgufTokenizerError("its normalizer leaves spaces as they are, which llama.cpp does not");
    return prefix;
  }
  const absl::StatusOr<Metaspace> metaspace = Metaspace::FromJson(pre);
  if (JsonMember(pre, "type") != "Metaspace" || !metaspace.ok() || !steps.empty())
    return GgufTokenizerError("llama.cpp cannot be told of the pre_tokenizer ", DumpJson(pre).substr(0, 200));
  return metaspace->prepend != Metaspace::Prepend::kNever;
}

std::pair<std::string, std::string> PartsOf(const json& merge) {
  if (const json::array_t& parts = JsonList(merge); parts.size() == 2)
    return {JsonTextOr(parts[0], ""), JsonTextOr(parts[1], "")};
  const std::string text = JsonTextOr(merge, "");
  const size_t space = text.find(' ');
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

absl::StatusOr<ScoredTokens> ScoresOfSentencePiece(absl::string_view contents) {
  RETURN_IF_ERROR(ParseSentencePieceFile(contents).status());
  SentencePieceModel model;
  TRIREME_CHECK(model.ParseFromArray(contents.data(), static_cast<int>(contents.size())), "parsed before");
  if (model.normalizer_spec().remove_extra_whitespaces())
    return GgufTokenizerError(
        "it removes extra white space, which llama.cpp does not; export to Hugging Face's format instead");
  if (!model.trainer_spec().byte_fallback())
    return GgufTokenizerError(
        "it has no byte_fallback, which llama.cpp needs; export to Hugging Face's format instead");
  ScoredTokens result;
  result.add_space_prefix = model.normalizer_spec().add_dummy_prefix();
  for (const auto& piece : model.pieces()) {
    // llama.cpp looks for these before it spells spaces.
    result.tokens.push_back(piece.type() == gguf_token_type::kUserDefined
                                ? absl::StrReplaceAll(piece.piece(), {{kMetaspace, " "}})
                                : piece.piece());
    result.scores.push_back(piece.score());
    result.types.push_back(piece.type());
  }
  return result;
}

absl::StatusOr<ScoredTokens> ScoresOfJson(const json& root, const BpeFile& file) {
  ScoredTokens result;
  ASSIGN_OR_RETURN(result.add_space_prefix, SpacePrefix(root));
  const json& model = JsonMember(root, "model");
  if (JsonMember(model, "ignore_merges") == true)
    return GgufTokenizerError("llama.cpp cannot be told of ignore_merges");
  const size_t size = file.bytes_of_id.size();
  result.tokens.resize(size);
  result.types.assign(size, gguf_token_type::kUnused);
  for (const auto& [token, id] : file.id_of_token) {
    char byte;
    result.tokens[id] = token;
    result.types[id] = ParseByteToken(token, &byte) ? gguf_token_type::kByte : gguf_token_type::kNormal;
  }
  if (const std::string* unknown = JsonText(JsonMember(model, "unk_token")))
    result.types[file.id_of_token.at(*unknown)] = gguf_token_type::kUnknown;
  for (const AddedToken& added : file.added_tokens) {
    if (result.types[added.id] != gguf_token_type::kUnknown)
      result.types[added.id] = added.special ? gguf_token_type::kControl : gguf_token_type::kUserDefined;
  }
  result.scores.assign(size, 0);
  std::vector<bool> scored(size);
  int32_t last = -1, rank = 0;
  for (const json& merge : JsonMember(model, "merges")) {
    if (absl::StartsWith(JsonTextOr(merge, ""), "#version")) continue;
    const auto [left, right] = PartsOf(merge);
    const int32_t id = file.id_of_token.at(left + right);
    if (id != last && scored[id])
      return GgufTokenizerError("merges that give ", left, right, " do not stand together, so no score says the same");
    if (!JsonMember(root, "pre_tokenizer").is_null() && absl::StartsWith(right, kMetaspace) &&
        !absl::EndsWith(left, kMetaspace))
      return GgufTokenizerError("its merges join words, its pre_tokenizer does not let them");
    if (id != last) result.scores[id] = static_cast<float>(-++rank);
    scored[id] = true;
    last = id;
  }
  // Characters come last; nothing is joined to become one.
  for (size_t id = 0; id < size; ++id) {
    if (result.types[id] == gguf_token_type::kNormal && !scored[id]) result.scores[id] = static_cast<float>(-rank - 1);
  }
  return result;
}

absl::StatusOr<std::vector<std::pair<int32_t, int32_t>>> MergesOfScores(const std::vector<std::string>& tokens,
                                                                        const std::vector<float>& scores) {
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  std::vector<int32_t> order;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    if (tokens[id].size() > kMaxTokenBytes || !IsValidUtf8(tokens[id]) || !std::isfinite(scores[id]))
      return Error(ExitCode::kData, "token ", id, " is longer than ", kMaxTokenBytes,
                   " bytes, not UTF-8 or has no finite score");
    ids.emplace(tokens[id], static_cast<int32_t>(id));
    order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<std::pair<int32_t, int32_t>> merges;
  for (const int32_t id : order) {
    const std::string& token = tokens[id];
    const char* next;
    for (const char* cut = token.data(); cut < token.data() + token.size(); cut = next) {
      DecodeUtf8(cut, &next);
      const size_t bytes = cut - token.data();
      const auto left = ids.find(absl::string_view(token).substr(0, bytes));
      const auto right = ids.find(absl::string_view(token).substr(bytes));
      if (left != ids.end() && right != ids.end()) merges.emplace_back(left->second, right->second);
    }
  }
  return merges;
}

}  // namespace trireme
