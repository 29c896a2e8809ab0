#include "data/tokenizer/tokenizer_folder.h"

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/tokenizer/sentencepiece_file.h"
#include "data/unicode/unicode.h"
#include "launch/base/file.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxSideFileBytes = size_t{64} << 20;
constexpr int32_t kMaxAddedId = 1 << 24;
constexpr char kConfig[] = "tokenizer_config.json", kAdded[] = "added_tokens.json",
               kSpecialMap[] = "special_tokens_map.json";
constexpr const char* kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

// null where the file is absent.
absl::StatusOr<Json> ReadObject(const std::string& path) {
  if (!Exists(path)) return Json();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxSideFileBytes));
  JsonProblem problem;
  std::optional<Json> json = ParseJson<Json>(text, {}, &problem);
  if (!json.has_value() || !json->is_object())
    return Error(ExitCode::kData, "tokenizer: ", path, " is not a JSON object");
  return *std::move(json);
}

// A token's text: a string, or an object with it as `content`; "" for anything else.
std::string TextOf(const Json& token) {
  return JsonTextOr(token.is_object() ? JsonMember(token, "content") : token, "");
}

absl::StatusOr<AddedToken> TokenOf(const std::string& path, const std::string& content, const Json& id) {
  int32_t number = -1;
  const std::optional<int64_t> whole = JsonInteger(id);
  if (whole.has_value() && *whole >= 0 && *whole <= kMaxAddedId) number = static_cast<int32_t>(*whole);
  if (const std::string* text = JsonText(id); text != nullptr && !absl::SimpleAtoi(*text, &number)) number = -1;
  if (content.empty() || !IsValidUtf8(content) || number < 0 || number > kMaxAddedId)
    return Error(ExitCode::kData, "tokenizer: ", path, " lists \"", content.substr(0, 60), "\" with the id ",
                 DumpJson(id).substr(0, 60), ", which is no token");
  AddedToken token;
  token.id = number;
  token.content = content;
  return token;
}

absl::Status ReadDecoder(const std::string& path, const Json& decoder, std::vector<AddedToken>* tokens) {
  if (!decoder.is_object()) return Error(ExitCode::kData, "tokenizer: ", path, ": added_tokens_decoder is no object");
  for (const auto& [id, entry] : decoder.items()) {
    ASSIGN_OR_RETURN(AddedToken token, TokenOf(path, TextOf(entry), Json(id)));
    const auto flag = [&entry = entry](const char* name) { return JsonMember(entry, name) == true; };
    token.lstrip = flag("lstrip");
    token.rstrip = flag("rstrip");
    token.special = flag("special");
    token.normalized = entry.is_object() && entry.contains("normalized") ? flag("normalized") : !token.special;
    if (flag("single_word"))
      return Error(ExitCode::kData, "tokenizer: ", path, ": \"", token.content,
                   "\" has single_word, which is not supported");
    tokens->push_back(std::move(token));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerFolder> ReadTokenizerFolder(const std::string& folder) {
  TokenizerFolder result;
  result.path = std::string(absl::StripSuffix(folder, "/."));
  const std::string config_path = absl::StrCat(folder, "/", kConfig), added_path = absl::StrCat(folder, "/", kAdded);
  ASSIGN_OR_RETURN(const Json config, ReadObject(config_path));
  ASSIGN_OR_RETURN(const Json added, ReadObject(added_path));
  result.exists = !config.is_null() || !added.is_null();
  if (!result.exists) return result;
  ASSIGN_OR_RETURN(const Json map, ReadObject(absl::StrCat(folder, "/", kSpecialMap)));
  const auto field = [&](const char* name) -> const Json& { return JsonMember(config, name); };
  const bool has_decoder = !field("added_tokens_decoder").is_null();
  for (const Json* object : {&config, &map}) {
    if (!object->is_object() || (object == &map && has_decoder)) continue;
    for (const char* role : kRoles) {
      const std::string text = TextOf(JsonMember(*object, role));
      if (text.empty()) continue;
      result.special.insert(text);
      if (role == std::string("eos_token")) result.eos = text;
    }
    for (const char* list : {"additional_special_tokens", "extra_special_tokens"}) {
      for (const Json& token : JsonMember(*object, list)) {
        if (const std::string text = TextOf(token); !text.empty()) result.special.insert(text);
      }
    }
  }
  if (has_decoder) {
    RETURN_IF_ERROR(ReadDecoder(config_path, field("added_tokens_decoder"), &result.added));
  } else if (!added.is_null()) {
    for (const auto& [content, id] : added.items()) {
      ASSIGN_OR_RETURN(AddedToken token, TokenOf(added_path, content, id));
      token.special = result.special.count(content) > 0;
      token.normalized = !token.special;
      result.added.push_back(std::move(token));
    }
  }
  std::sort(result.added.begin(), result.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  if (const std::optional<bool> flag = JsonBool(field("add_prefix_space"))) result.add_prefix_space = *flag;
  if (const std::optional<bool> flag = JsonBool(field("legacy"))) result.legacy = *flag;
  if (const std::string* name = JsonText(field("tokenizer_class"))) result.tokenizer_class = *name;
  return result;
}

absl::Status AddTokensOfFolder(const TokenizerFolder& folder, BpeFile* file) {
  for (const AddedToken& listed : folder.added) {
    const auto is_same = [&](const AddedToken& known) { return known.content == listed.content; };
    if (std::any_of(file->added_tokens.begin(), file->added_tokens.end(), is_same)) continue;
    AddedToken token = listed;
    const auto known = file->id_of_token.find(token.content);
    if (known != file->id_of_token.end()) {
      token.id = known->second;
    } else {
      const auto next = static_cast<int32_t>(file->bytes_of_id.size());
      if (token.id != next)
        return Error(ExitCode::kData, folder.path, " adds the token \"", token.content, "\" with the id ", token.id,
                     " where the next free one is ", next,
                     "; save the tokenizer with Transformers (save_pretrained), which writes a whole tokenizer.json");
      file->bytes_of_id.push_back(file->decoder.Bytes(token.content));
      file->id_of_token.emplace(token.content, token.id);
    }
    if (token.special) file->special_ids.insert(token.id);
    file->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status CopyTokenizerFolder(const std::string& from, const std::string& to, const std::string& contents) {
  ASSIGN_OR_RETURN(const TokenizerFolder folder, ReadTokenizerFolder(from));
  if (!folder.exists) return absl::OkStatus();
  if (!IsSentencePieceFile(contents)) {
    ASSIGN_OR_RETURN(const BpeFile alone, ParseBpeFile(contents));
    ASSIGN_OR_RETURN(const BpeFile whole, ParseBpeFile(contents, folder));
    if (alone.added_tokens.size() == whole.added_tokens.size()) return absl::OkStatus();
  }
  for (const char* name : {kConfig, kAdded, kSpecialMap}) {
    const std::string source = absl::StrCat(from, "/", name);
    if (!Exists(source)) continue;
    ASSIGN_OR_RETURN(const std::string text, ReadFile(source, kMaxSideFileBytes));
    RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(to, "/", name), text));
  }
  return absl::OkStatus();
}

}  // namespace trireme
