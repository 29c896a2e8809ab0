#include "models/formats/gguf/gguf_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "data/tokenizer/bpe_file.h"
#include "data/tokenizer/sentencepiece_file.h"
#include "data/unicode/bpe_bytes.h"
#include "data/unicode/unicode.h"
#include "launch/base/json.h"
#include "models/formats/gguf/gguf_splits.h"
#include "models/formats/gguf/gguf_token_type.h"
#include "models/formats/gguf/gguf_tokenizer_scores.h"

namespace trireme {
namespace {

using nlohmann::json;

// A space inside a part, which the "a b" form of a merge cannot hold, is spelled as the converter spells it.
std::string MergePart(const std::string& part) {
  std::string result;
  for (const char c : part) result += c == ' ' ? "\xC4\xA0" : std::string(1, c);
  return result;
}

std::vector<std::string> Merges(const json& list) {
  std::vector<std::string> merges;
  merges.reserve(list.size());
  for (const json& merge : list) {
    if (const json::array_t& parts = JsonList(merge); parts.size() == 2) {
      merges.push_back(MergePart(JsonTextOr(parts[0], "")) + " " + MergePart(JsonTextOr(parts[1], "")));
    } else if (const std::string text = JsonTextOr(merge, ""); text.rfind("#version", 0) != 0) {
      merges.push_back(text);
    }
  }
  return merges;
}

// A token that whole words make of a text and merges do not; "" where none is, so that ignore_merges has no effect.
absl::StatusOr<std::string> WholeWord(json root) {
  root["model"]["ignore_merges"] = false;
  ASSIGN_OR_RETURN(const BpeFile file, ParseBpeFile(DumpJson(root)));
  std::unordered_set<std::string> added;
  for (const AddedToken& token : file.added_tokens) added.insert(token.content);
  std::string bytes;
  std::vector<int32_t> ids;
  for (const auto& [token, id] : JsonMember(JsonMember(root, "model"), "vocab").items()) {
    // No text is cut into what is no text.
    if (added.count(token) > 0 || !UnspellBytes(token, &bytes) || !IsValidUtf8(bytes)) continue;
    ids.clear();
    file.model->Encode(bytes, &ids);
    if (ids.size() != 1) return token;
  }
  return std::string();
}

// llama.cpp's rules for the file, whose merges are "a b" each. What it does in the same way is preferred: whether whole
// words come before merging, then whether its published tokenizers compose characters.
absl::StatusOr<const GgufSplit*> RulesOf(const json& root, bool nfc, const std::vector<std::string>& merges) {
  const json& pre_tokenizer = JsonMember(root, "pre_tokenizer");
  const bool ignore_merges = JsonMember(JsonMember(root, "model"), "ignore_merges") == true;
  ASSIGN_OR_RETURN(const std::vector<std::string> steps, SplitSteps(pre_tokenizer));
  const GgufSplit* found = nullptr;
  for (const GgufSplit& rules : GgufSplits()) {
    if (rules.steps != steps) continue;
    const auto likeness = [&](const GgufSplit& r) { return 2 * (r.ignore_merges == ignore_merges) + (r.nfc == nfc); };
    if (found == nullptr || likeness(rules) > likeness(*found)) found = &rules;
  }
  std::string word;
  if (found != nullptr && found->ignore_merges != ignore_merges) {
    ASSIGN_OR_RETURN(word, WholeWord(root));
  }
  if (found == nullptr || !word.empty()) {
    const std::string with = ignore_merges ? " with ignore_merges" : word.empty() ? "" : " without ignore_merges";
    const std::string why = word.empty() ? "" : absl::StrCat(" (the token \"", word, "\" is no merge's)");
    return GgufTokenizerError("llama.cpp has no name for these splitting rules", with, why, ": ",
                              DumpJson(pre_tokenizer).substr(0, 300),
                              "; export to Hugging Face's format instead (docs/formats.md lists what has a name)");
  }
  if (const std::string token = JoinedNumbers(merges, found->numbers); !token.empty())
    return GgufTokenizerError("its merges make \"", token,
                              "\", which its splitting rules never let through and llama.cpp's \"", found->names[0],
                              "\" do; export to Hugging Face's format instead");
  return found;
}

absl::Status CheckOptions(const GgufTokenizerOptions& options) {
  std::vector<std::pair<const char*, std::optional<int32_t>>> ids = {
      {"bos", options.bos_token_id}, {"eos", options.eos_token_id}, {"pad", options.pad_token_id}};
  for (const int32_t end : options.more_ends) ids.emplace_back("eos", end);
  for (const auto& [name, id] : ids) {
    if (id.has_value() && (*id < 0 || *id >= options.vocab_size))
      return Error(ExitCode::kConfig, "tokenizer for gguf: ", name, "_token_id ", *id, " is outside the vocabulary of ",
                   options.vocab_size);
  }
  if (options.add_bos_token && !options.bos_token_id.has_value())
    return Error(ExitCode::kConfig, "tokenizer for gguf: add_bos_token needs a bos_token_id");
  return absl::OkStatus();
}

// Ids without token become unused ones.
void FillUnused(int64_t vocab_size, std::vector<std::string>* tokens, std::vector<int32_t>* types) {
  const std::unordered_set<std::string> known(tokens->begin(), tokens->end());
  tokens->resize(vocab_size);
  types->resize(vocab_size, gguf_token_type::kUnused);
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (!(*tokens)[id].empty()) continue;
    (*tokens)[id] = absl::StrCat("[PAD", id, "]");
    while (known.count((*tokens)[id]) > 0) (*tokens)[id] += "_";  // llama.cpp wants them to differ.
  }
}

absl::Status CheckSize(size_t ids, const GgufTokenizerOptions& options) {
  if (static_cast<int64_t>(ids) <= options.vocab_size) return absl::OkStatus();
  return Error(ExitCode::kConfig, "tokenizer for gguf: has ids up to ", ids - 1, " but the model's vocabulary is ",
               options.vocab_size, "; it is another model's tokenizer");
}

void AddOptions(const GgufTokenizerOptions& options, GgufTokenizer* result) {
  GgufMetadata* out = &result->metadata;
  const std::pair<const char*, std::optional<int32_t>> ids[] = {
      {"bos", options.bos_token_id}, {"eos", options.eos_token_id}, {"padding", options.pad_token_id}};
  for (const auto& [name, id] : ids) {
    if (id.has_value())
      out->emplace_back(absl::StrCat("tokenizer.ggml.", name, "_token_id"), static_cast<uint32_t>(*id));
  }
  for (size_t i = 0; i < options.more_ends.size(); ++i) {
    if (i < std::size(kGgufMoreEnds)) {
      out->emplace_back(kGgufMoreEnds[i], static_cast<uint32_t>(options.more_ends[i]));
    } else {
      result->warnings.push_back(absl::StrCat("a GGUF file has no room for token ", options.more_ends[i],
                                              " among those at which to stop; llama.cpp may go on after it"));
    }
  }
  out->emplace_back("tokenizer.ggml.add_bos_token", options.add_bos_token);
  if (!options.chat_template.empty()) out->emplace_back("tokenizer.chat_template", options.chat_template);
}

void WarnOfStripping(const std::vector<AddedToken>& added_tokens, std::vector<std::string>* warnings) {
  for (const AddedToken& added : added_tokens) {
    if (added.lstrip || added.rstrip) {
      warnings->push_back(absl::StrCat("llama.cpp does not let ", added.content,
                                       " take the white space beside it (lstrip, rstrip): such text gets other ids"));
    }
  }
}

GgufTokenizer OfScores(ScoredTokens scored, const GgufTokenizerOptions& options) {
  GgufTokenizer result;
  GgufMetadata& out = result.metadata;
  const auto unknown = std::find(scored.types.begin(), scored.types.end(), gguf_token_type::kUnknown);
  const auto unknown_id = static_cast<uint32_t>(unknown - scored.types.begin());
  const bool has_unknown = unknown != scored.types.end();
  FillUnused(options.vocab_size, &scored.tokens, &scored.types);
  scored.scores.resize(options.vocab_size);
  out.emplace_back("tokenizer.ggml.model", std::string("llama"));
  out.emplace_back("tokenizer.ggml.pre", std::string("default"));
  out.emplace_back("tokenizer.ggml.tokens", GgufArray(std::move(scored.tokens)));
  out.emplace_back("tokenizer.ggml.scores", GgufArray(std::move(scored.scores)));
  out.emplace_back("tokenizer.ggml.token_type", GgufArray(std::move(scored.types)));
  if (has_unknown) out.emplace_back("tokenizer.ggml.unknown_token_id", unknown_id);
  out.emplace_back("tokenizer.ggml.add_space_prefix", scored.add_space_prefix);
  AddOptions(options, &result);
  return result;
}

}  // namespace

absl::StatusOr<GgufTokenizer> MakeGgufTokenizer(absl::string_view contents, const GgufTokenizerOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (IsSentencePieceFile(contents)) {
    ASSIGN_OR_RETURN(ScoredTokens scored, ScoresOfSentencePiece(contents));
    ASSIGN_OR_RETURN(const BpeFile file, ParseSentencePieceFile(contents, options.folder));
    const size_t own = scored.tokens.size(), size = file.bytes_of_id.size();
    RETURN_IF_ERROR(CheckSize(size, options));
    scored.tokens.resize(size);
    scored.scores.resize(size);
    scored.types.resize(size, gguf_token_type::kUnused);
    for (const AddedToken& added : file.added_tokens) {
      if (static_cast<size_t>(added.id) < own) continue;
      scored.tokens[added.id] = added.content;
      scored.types[added.id] = added.special ? gguf_token_type::kControl : gguf_token_type::kUserDefined;
    }
    GgufTokenizer result = OfScores(std::move(scored), options);
    if (size > own && !options.folder.legacy)
      result.warnings.push_back(
          "llama.cpp puts a space before the text behind every added token, Transformers only before the whole text: "
          "such text gets other ids");
    WarnOfStripping(file.added_tokens, &result.warnings);
    return result;
  }
  ASSIGN_OR_RETURN(const BpeFile file, ParseBpeFile(contents, options.folder));
  RETURN_IF_ERROR(CheckSize(file.bytes_of_id.size(), options));
  JsonProblem problem;
  const std::optional<json> parsed = ParseJson<json>(contents, {}, &problem);
  TRIREME_CHECK(parsed.has_value(), "parsed before");
  const json &root = *parsed, &model = JsonMember(root, "model");
  GgufTokenizer result;
  if (!file.pre_tokenizer.byte_level()) {
    ASSIGN_OR_RETURN(ScoredTokens scored, ScoresOfJson(root, file));
    result = OfScores(std::move(scored), options);
    WarnOfStripping(file.added_tokens, &result.warnings);
    return result;
  }
  std::vector<std::string> merges = Merges(JsonMember(model, "merges"));
  ASSIGN_OR_RETURN(const GgufSplit* rules, RulesOf(root, file.normalizer.applies_nfc(), merges));
  if (!rules->differs.empty())
    result.warnings.push_back(absl::StrCat("llama.cpp's splitting rules \"", rules->names[0], "\" cut ", rules->differs,
                                           " otherwise than the tokenizer: such text gets other ids"));
  if (file.normalizer.applies_nfc()) {
    result.warnings.push_back(
        "llama.cpp does not apply the tokenizer's NFC normalization: text that is not in that form gets other ids");
  }
  std::vector<std::string> tokens(file.bytes_of_id.size());
  std::vector<int32_t> types(file.bytes_of_id.size(), gguf_token_type::kUnused);
  for (const auto& [token, id] : file.id_of_token) {
    tokens[id] = token;
    types[id] = gguf_token_type::kNormal;
  }
  for (const AddedToken& added : file.added_tokens)
    types[added.id] = added.special ? gguf_token_type::kControl : gguf_token_type::kUserDefined;
  WarnOfStripping(file.added_tokens, &result.warnings);
  FillUnused(options.vocab_size, &tokens, &types);

  GgufMetadata& out = result.metadata;
  out.emplace_back("tokenizer.ggml.model", std::string("gpt2"));
  out.emplace_back("tokenizer.ggml.pre", std::string(rules->names[0]));
  out.emplace_back("tokenizer.ggml.tokens", GgufArray(std::move(tokens)));
  out.emplace_back("tokenizer.ggml.token_type", GgufArray(std::move(types)));
  out.emplace_back("tokenizer.ggml.merges", GgufArray(std::move(merges)));
  AddOptions(options, &result);
  return result;
}

}  // namespace trireme
