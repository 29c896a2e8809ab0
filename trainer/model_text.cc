#include "trainer/model_text.h"

#include <absl/strings/match.h>

#include <utility>

#include "launch/file.h"
#include "models/formats/gguf_config.h"
#include "models/formats/gguf_tokenizer_json.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "models/formats/json_file.h"
#include "trainer/prompt.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr int64_t kTemplateNow = 1721952000;  // 26 Jul 2024, what Llama's templates take where there is no clock.
constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;

std::string SpecialToken(const Json& config, const char* key) {
  const auto token = config.find(key);
  if (token == config.end()) return "";
  if (token->is_string()) return token->get<std::string>();
  const auto content = token->find("content");
  return token->is_object() && content != token->end() && content->is_string() ? content->get<std::string>() : "";
}

absl::StatusOr<ChatTemplate> ParseGiven(const std::string& given, ChatTemplateOptions options) {
  if (absl::StrContains(given, "{{") || absl::StrContains(given, "{%"))
    return ChatTemplate::Parse(given, "chat_template", std::move(options));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(given, kMaxTemplateBytes));
  return ChatTemplate::Parse(text, given, std::move(options));
}

absl::Status OpenFolder(const std::string& given, ModelText* text) {
  const std::string &folder = text->origin, path = folder + "/tokenizer.json";
  if (!Exists(path)) {
    return Error(ExitCode::kData, "tokenizer: ", folder,
                 " holds no tokenizer.json; name a folder with the model's in data.conversations.tokenizer");
  }
  ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Load(path));
  ASSIGN_OR_RETURN(text->prefix_ids, PrefixIds(folder, *text->tokenizer));
  ChatTemplateOptions options;
  options.now = kTemplateNow;
  std::optional<int64_t> end;
  if (const std::string config_path = folder + "/tokenizer_config.json"; Exists(config_path)) {
    ASSIGN_OR_RETURN(const Json config, ReadJsonObject(config_path));
    end = SpecialTokenId(config, "eos_token", *text->tokenizer);
    for (const char* key :
         {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      const std::string token = SpecialToken(config, key);
      if (!token.empty()) options.special_tokens[key] = token;
    }
  }
  if (!end.has_value() && Exists(folder + "/" + kHfConfigName)) {
    const absl::StatusOr<HfTokenIds> ids = ReadHfTokenIds(folder + "/" + kHfConfigName);
    if (ids.ok() && !ids->eos.empty()) end = ids->eos[0];
  }
  text->end_id = static_cast<int32_t>(end.value_or(text->tokenizer->end_of_document()));
  text->chat_template = given.empty() ? LoadChatTemplate(folder, options) : ParseGiven(given, options);
  return absl::OkStatus();
}

absl::Status OpenGgufText(const std::string& given, ModelText* text) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(text->origin));
  ASSIGN_OR_RETURN(const std::string contents, TokenizerJsonOfGguf(*file));
  ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Parse(contents, text->origin));
  ASSIGN_OR_RETURN(text->prefix_ids, PrefixIdsOf(contents, text->origin, *text->tokenizer));
  ASSIGN_OR_RETURN(const HfTokenIds ids, ReadGgufTokenIds(*file, text->tokenizer->vocab_size()));
  text->end_id = ids.eos.empty() ? text->tokenizer->end_of_document() : static_cast<int32_t>(ids.eos[0]);
  ChatTemplateOptions options;
  options.now = kTemplateNow;
  const auto add = [&](const char* key, std::optional<int64_t> id) {
    if (id.has_value())
      options.special_tokens[key] = std::string(text->tokenizer->TokenBytes(static_cast<int32_t>(*id)));
  };
  add("bos_token", ids.bos);
  add("pad_token", ids.pad);
  if (!ids.eos.empty()) add("eos_token", ids.eos[0]);
  ASSIGN_OR_RETURN(const std::string own, file->String("tokenizer.chat_template", ""));
  if (!given.empty()) {
    text->chat_template = ParseGiven(given, options);
  } else if (!own.empty()) {
    text->chat_template = ChatTemplate::Parse(own, text->origin, options);
  } else {
    text->chat_template = Error(ExitCode::kData, text->origin, " holds no chat template");
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<int64_t> SpecialTokenId(const Json& tokenizer_config, const char* key, const Tokenizer& tokenizer) {
  const std::string token = SpecialToken(tokenizer_config, key);
  const int32_t id = token.empty() ? -1 : tokenizer.TokenId(token);
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

absl::StatusOr<ModelText> OpenModelText(const std::string& model, const std::string& chat_template) {
  ModelText text{model, nullptr, absl::UnknownError(""), {}, -1};
  if (NamesGguf(model)) {
    RETURN_IF_ERROR(OpenGgufText(chat_template, &text));
  } else {
    ASSIGN_OR_RETURN(text.origin, FindHfDirectory(model));
    RETURN_IF_ERROR(OpenFolder(chat_template, &text));
  }
  if (!chat_template.empty() && !text.chat_template.ok()) return text.chat_template.status();
  return text;
}

}  // namespace trireme
