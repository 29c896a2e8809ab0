#include "models/formats/gguf/gguf_tokenizer_json.h"

#include <absl/strings/str_join.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "models/formats/gguf/gguf_splits.h"
#include "models/formats/gguf/gguf_token_type.h"
#include "models/formats/gguf/gguf_tokenizer_scores.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

template <typename T>
const std::vector<T>* FindArray(const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.Find(key);
  const GgufArray* array = value == nullptr ? nullptr : std::get_if<GgufArray>(value);
  return array == nullptr ? nullptr : std::get_if<std::vector<T>>(array);
}

// A file may leave it out, or say null: default.
std::string PreName(const GgufFile& file) {
  const absl::StatusOr<std::string> name = file.String("tokenizer.ggml.pre", "default");
  return name.ok() ? *name : "default";
}

const Json kByteLevel = {
    {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};

absl::StatusOr<const GgufSplit*> RulesNamed(const std::string& name, const std::string& path) {
  if (const GgufSplit* rules = FindGgufSplit(name)) return rules;
  std::vector<const char*> known;
  for (const GgufSplit& rules : GgufSplits()) known.push_back(rules.names[0]);
  return Error(ExitCode::kData, "gguf ", path, ": tokenizer.ggml.pre \"", name,
               "\" names splitting rules that are not known here (", absl::StrJoin(known, ", "),
               " and their synonyms are); take tokenizer.json from the model's Hugging Face directory");
}

absl::StatusOr<Json> MergesOf(const GgufFile& file, const std::unordered_set<std::string>& tokens) {
  const auto* merges = FindArray<std::string>(file, "tokenizer.ggml.merges");
  if (merges == nullptr) return Error(ExitCode::kData, "gguf ", file.path(), ": has no tokenizer.ggml.merges");
  Json list = Json::array();
  for (const std::string& merge : *merges) {
    // llama.cpp cuts here: a part may begin with a space and holds none after that.
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos)
      return Error(ExitCode::kData, "gguf ", file.path(), ": tokenizer.ggml.merges: \"", merge, "\" is no pair");
    const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
    for (const std::string& token : {left, right, left + right}) {
      if (tokens.count(token) == 0)
        return Error(ExitCode::kData, "gguf ", file.path(), ": tokenizer.ggml.merges: \"", merge,
                     "\" needs the token \"", token, "\", which is not there");
    }
    list.push_back(Json::array({left, right}));
  }
  return list;
}

Json Replace(const char* pattern, const char* content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

bool Flag(const GgufFile& file, const char* key, bool if_absent) {
  const GgufValue* value = file.Find(key);
  return value != nullptr && std::holds_alternative<bool>(*value) ? std::get<bool>(*value) : if_absent;
}

absl::StatusOr<Json> MergesByScore(const GgufFile& file, const std::vector<std::string>& tokens) {
  const auto* scores = FindArray<float>(file, "tokenizer.ggml.scores");
  if (scores == nullptr || scores->size() != tokens.size())
    return Error(ExitCode::kData, "gguf ", file.path(),
                 ": tokenizer.ggml.scores is missing or has another length than tokenizer.ggml.tokens");
  const auto merges = MergesOfScores(tokens, *scores);
  if (!merges.ok()) return Annotate(merges.status(), absl::StrCat("gguf ", file.path()));
  Json list = Json::array();
  for (const auto& [left, right] : *merges) list.push_back(Json::array({tokens[left], tokens[right]}));
  return list;
}

// What adds the beginning of text where a file asks for it.
Json PostProcessor(const std::string& bos, int64_t id) {
  const Json token = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
  const auto sequence = [](const char* name, int type) {
    return Json{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  Json token_b = token;
  token_b["SpecialToken"]["type_id"] = 1;
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({token, sequence("A", 0)})},
          {"pair", Json::array({token, sequence("A", 0), token_b, sequence("B", 1)})},
          {"special_tokens", {{bos, {{"id", bos}, {"ids", Json::array({id})}, {"tokens", Json::array({bos})}}}}}};
}

absl::StatusOr<Json> PostProcessorOf(const GgufFile& file, const std::vector<std::string>& tokens) {
  const bool scored = file.String("tokenizer.ggml.model", "").value_or("") == "llama";
  if (!Flag(file, "tokenizer.ggml.add_bos_token", /*if_absent=*/scored)) return scored ? Json() : kByteLevel;
  ASSIGN_OR_RETURN(const int64_t bos, file.Integer("tokenizer.ggml.bos_token_id"));
  if (bos < 0 || bos >= static_cast<int64_t>(tokens.size()))
    return Error(ExitCode::kData, "gguf ", file.path(), ": tokenizer.ggml.bos_token_id ", bos, " is no token");
  return PostProcessor(tokens[bos], bos);
}

template <typename... Args>
absl::Status Bad(const GgufFile& file, const Args&... why) {
  return Error(ExitCode::kData, "gguf ", file.path(), ": ", why...);
}

// A file's tokens as tokenizer.json has them.
struct Vocabulary {
  Json ids = Json::object(), added = Json::array();
  std::unordered_set<std::string> seen;
  std::vector<std::string> joined;  // what merges lead to, "" where none does
  std::string unknown;              // "": none
};

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file, const std::vector<std::string>& tokens,
                                          const std::vector<int32_t>* types) {
  Vocabulary result;
  // Filled as the vector that it is: looking every key up would be quadratic.
  Json::object_t::Container& entries = result.ids.get_ref<Json::object_t&>();
  result.joined.resize(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    const int32_t type = types == nullptr ? gguf_token_type::kNormal : (*types)[id];
    if (type == gguf_token_type::kUnused) continue;
    if (token.empty() || !result.seen.insert(token).second) return Bad(file, "token ", id, " is empty or stands twice");
    entries.emplace_back(token, id);
    if (type == gguf_token_type::kNormal) result.joined[id] = token;
    if (type == gguf_token_type::kUnknown) result.unknown = token;
    if (type != gguf_token_type::kUnknown && type != gguf_token_type::kControl && type != gguf_token_type::kUserDefined)
      continue;
    result.added.push_back({{"id", id},
                            {"content", token},
                            {"single_word", false},
                            {"lstrip", false},
                            {"rstrip", false},
                            {"normalized", false},
                            {"special", type != gguf_token_type::kUserDefined}});
  }
  return result;
}

// Makes `root` SentencePiece's: spaces are a character of their own, and what no token has is spelled in bytes.
void AddSentencePieceRules(const GgufFile& file, const std::string& unknown, Json* root) {
  const bool prefix = Flag(file, "tokenizer.ggml.add_space_prefix", true);
  Json steps = Json::array({Replace(" ", kMetaspace)});
  if (prefix) steps.insert(steps.begin(), Json{{"type", "Prepend"}, {"prepend", kMetaspace}});
  (*root)["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
  (*root)["pre_tokenizer"] = nullptr;
  Json decoders = Json::array({Replace(kMetaspace, " "), Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  (*root)["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  (*root)["model"]["byte_fallback"] = (*root)["model"]["fuse_unk"] = true;
  if (!unknown.empty()) (*root)["model"]["unk_token"] = unknown;
}

}  // namespace

absl::StatusOr<std::string> TokenizerJsonOfGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string model, file.String("tokenizer.ggml.model", "none"));
  const bool scored = model == "llama";
  if (model != "gpt2" && !scored) {
    return Bad(file, "its tokenizer is of the kind \"", model,
               "\"; only byte-level BPE (\"gpt2\") and SentencePiece's (\"llama\") can be written as tokenizer.json; "
               "take it from the model's Hugging Face directory");
  }
  const GgufSplit* rules = nullptr;  // of byte-level BPE
  if (!scored) {
    ASSIGN_OR_RETURN(rules, RulesNamed(PreName(file), file.path()));
  }
  const auto* tokens = FindArray<std::string>(file, "tokenizer.ggml.tokens");
  const auto* types = FindArray<int32_t>(file, "tokenizer.ggml.token_type");
  if (tokens == nullptr || (types != nullptr && types->size() != tokens->size()))
    return Bad(file, "tokenizer.ggml.tokens is missing or has another length than tokenizer.ggml.token_type");
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file, *tokens, types));
  ASSIGN_OR_RETURN(Json merges, scored ? MergesByScore(file, vocabulary.joined) : MergesOf(file, vocabulary.seen));
  ASSIGN_OR_RETURN(Json post_processor, PostProcessorOf(file, *tokens));
  Json root = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", std::move(vocabulary.added)},
               {"normalizer", !scored && rules->nfc ? Json{{"type", "NFC"}} : Json()},
               {"pre_tokenizer", scored ? Json() : PreTokenizerOfSteps(rules->steps)},
               {"post_processor", std::move(post_processor)},
               {"decoder", kByteLevel}};
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", !scored && rules->ignore_merges},
                   {"vocab", std::move(vocabulary.ids)},
                   {"merges", std::move(merges)}};
  if (scored) AddSentencePieceRules(file, vocabulary.unknown, &root);
  try {
    return root.dump();
  } catch (const Json::type_error& error) {
    return Bad(file, "its tokens are not UTF-8: ", error.what());
  }
}

std::string DescribeGgufTokenizer(const GgufFile& file) {
  const auto* tokens = FindArray<std::string>(file, "tokenizer.ggml.tokens");
  if (tokens == nullptr) return "none";
  const auto* merges = FindArray<std::string>(file, "tokenizer.ggml.merges");
  return absl::StrCat(file.String("tokenizer.ggml.model", "?").value_or("?"), "/", PreName(file), ", ", tokens->size(),
                      " tokens", merges == nullptr ? "" : absl::StrCat(", ", merges->size(), " merges"),
                      file.Find("tokenizer.chat_template") == nullptr ? "" : ", chat template");
}

}  // namespace trireme
