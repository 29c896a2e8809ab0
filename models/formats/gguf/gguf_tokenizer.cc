#include "models/formats/gguf/gguf_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/tokenizer/bpe_file.h"
#include "data/tokenizer/sentencepiece_file.h"
#include "launch/base/json.h"
#include "models/formats/gguf/gguf_token_type.h"
#include "models/formats/gguf/gguf_tokenizer_scores.h"

namespace trireme {
namespace {

using nlohmann::json;

void Flatten(const json& step, std::vector<const json*>* steps) {
  if (JsonMember(step, "type") != "Sequence") {
    steps->push_back(&step);
    return;
  }
  for (const json& member : JsonMember(step, "pretokenizers")) Flatten(member, steps);
}

// The name in llama.cpp of the splitting rules, which are well formed: the file has been parsed before.
absl::StatusOr<std::string> SplitName(const json& root, bool ignore_merges) {
  std::vector<const json*> steps;
  Flatten(JsonMember(root, "pre_tokenizer"), &steps);
  const json& last = *steps.back();
  if (JsonMember(last, "add_prefix_space") == true)
    return GgufTokenizerError(
        "every text begins with a space (add_prefix_space), which llama.cpp cannot be told; export to Hugging "
        "Face's format instead");
  const bool gpt2_last = JsonBool(JsonMember(last, "use_regex")).value_or(true);
  std::string rules;
  for (const json* step : steps) {
    if (step == &last) continue;
    const auto is = [step](const char* key, const json& value) { return JsonMember(*step, key) == value; };
    if (is("type", "Digits")) {
      rules += is("individual_digits", true) ? "digit," : "digits,";
    } else {
      const bool isolated = is("behavior", "Isolated") && is("invert", false);
      const bool removed_inverted = is("behavior", "Removed") && is("invert", true);
      const std::string regex = JsonTextOr(JsonMember(JsonMember(*step, "pattern"), "Regex"), "");
      // These patterns match every character, so both ways of cutting are the same.
      if (!isolated && !removed_inverted) {
        rules += "?,";
      } else if (regex == kGpt2Pattern) {
        rules += "gpt2,";
      } else if (regex == kLlama3Pattern) {
        rules += "llama3,";
      } else if (regex == kQwen2Pattern) {
        rules += "qwen2,";
      } else {
        rules += "?,";
      }
    }
  }
  if (gpt2_last) rules += "gpt2,";
  const char* name = nullptr;
  if (rules == "gpt2," && !ignore_merges) name = "gpt-2";
  if (rules == "digit,gpt2," && !ignore_merges) name = "smollm";
  if (rules == "qwen2," && !ignore_merges) name = "qwen2";
  // These rules have two names: "llama-bpe" also takes whole words before merging.
  if (rules == "llama3,") name = ignore_merges ? "llama-bpe" : "dbrx";
  if (name != nullptr) return std::string(name);
  return GgufTokenizerError(
      "llama.cpp has no name for these splitting rules", ignore_merges ? " with ignore_merges" : "", ": ",
      DumpJson(JsonMember(root, "pre_tokenizer")).substr(0, 300),
      "; it knows those of GPT-2, SmolLM, Llama 3 and Qwen 2; export to Hugging Face's format instead");
}

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
  const bool ignore_merges = JsonMember(model, "ignore_merges") == true;
  ASSIGN_OR_RETURN(const std::string split_name, SplitName(root, ignore_merges));

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
  out.emplace_back("tokenizer.ggml.pre", split_name);
  out.emplace_back("tokenizer.ggml.tokens", GgufArray(std::move(tokens)));
  out.emplace_back("tokenizer.ggml.token_type", GgufArray(std::move(types)));
  out.emplace_back("tokenizer.ggml.merges", GgufArray(Merges(JsonMember(model, "merges"))));
  AddOptions(options, &result);
  return result;
}

}  // namespace trireme
