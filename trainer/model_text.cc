#include "trainer/model_text.h"

#include <absl/strings/match.h>

#include <utility>

#include "launch/file.h"
#include "launch/log.h"
#include "models/formats/gguf_config.h"
#include "models/formats/gguf_tokenizer_json.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "models/formats/json_file.h"
#include "trainer/prompt.h"

namespace trireme {
namespace {

constexpr int64_t kTemplateNow = 1721952000;  // 26 Jul 2024, what Llama's templates take where there is no clock.
constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;

absl::StatusOr<ChatTemplate> ParseGiven(const std::string& given, ChatTemplateOptions options) {
  if (absl::StrContains(given, "{{") || absl::StrContains(given, "{%"))
    return ChatTemplate::Parse(given, "chat_template", std::move(options));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(given, kMaxTemplateBytes));
  return ChatTemplate::Parse(text, given, std::move(options));
}

ChatTemplateOptions OptionsOn(TemplateDate date) {
  ChatTemplateOptions options;
  if (date == TemplateDate::kOneDay) options.now = kTemplateNow;
  return options;
}

// Transformers adds what only tokenizer_config.json names; here it is text like any other.
void WarnOfAddedTokens(const std::string& folder, const Tokenizer& tokenizer) {
  const absl::StatusOr<nlohmann::json> config = ReadJsonObject(folder + "/tokenizer_config.json");
  if (!config.ok()) return;
  const nlohmann::json& added = JsonMember(*config, "added_tokens_decoder");
  for (const auto& [id, token] : added.items()) {
    const std::string* content = JsonText(JsonMember(token, "content"));
    if (content != nullptr && tokenizer.TokenId(*content) < 0)
      Warning("tokenizer: ", folder, "/tokenizer_config.json adds the token \"", *content,
              "\", which the tokenizer's own file does not have; it is read as ordinary text");
  }
}

absl::Status OpenFolder(const std::string& given, TemplateDate date, ModelText* text) {
  const std::string &folder = text->origin, path = FindTokenizer(folder);
  if (path.empty()) {
    return Error(ExitCode::kData, "tokenizer: ", folder,
                 " holds neither tokenizer.json nor tokenizer.model; name a folder with the model's in "
                 "data.conversations.tokenizer");
  }
  ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Load(path));
  ASSIGN_OR_RETURN(text->prefix_ids, PrefixIds(folder, *text->tokenizer));
  WarnOfAddedTokens(folder, *text->tokenizer);
  ChatTemplateOptions options = OptionsOn(date);
  ASSIGN_OR_RETURN(options.special_tokens, ReadSpecialTokens(folder));
  std::optional<int64_t> end = SpecialTokenId(options.special_tokens, "eos_token", *text->tokenizer);
  if (!end.has_value() && Exists(folder + "/" + kHfConfigName)) {
    const absl::StatusOr<HfTokenIds> ids = ReadHfTokenIds(folder + "/" + kHfConfigName);
    if (ids.ok() && !ids->eos.empty()) end = ids->eos[0];
  }
  text->end_id = static_cast<int32_t>(end.value_or(text->tokenizer->end_of_document()));
  text->chat_template = given.empty() ? LoadChatTemplate(folder, options) : ParseGiven(given, options);
  return absl::OkStatus();
}

absl::Status OpenGgufText(const std::string& given, TemplateDate date, ModelText* text) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(text->origin));
  ASSIGN_OR_RETURN(const std::string contents, TokenizerJsonOfGguf(*file));
  ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Parse(contents, text->origin));
  ASSIGN_OR_RETURN(text->prefix_ids, PrefixIdsOf(contents, text->origin, *text->tokenizer));
  ASSIGN_OR_RETURN(const HfTokenIds ids, ReadGgufTokenIds(*file, text->tokenizer->vocab_size()));
  text->end_id = ids.eos.empty() ? text->tokenizer->end_of_document() : static_cast<int32_t>(ids.eos[0]);
  ChatTemplateOptions options = OptionsOn(date);
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

std::optional<int64_t> SpecialTokenId(const SpecialTokens& tokens, const char* role, const Tokenizer& tokenizer) {
  const auto token = tokens.find(role);
  const int32_t id = token == tokens.end() ? -1 : tokenizer.TokenId(token->second);
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

absl::StatusOr<ModelText> OpenModelText(const std::string& model, const std::string& chat_template, TemplateDate date) {
  ModelText text{model, nullptr, absl::UnknownError(""), {}, -1};
  if (NamesGguf(model)) {
    RETURN_IF_ERROR(OpenGgufText(chat_template, date, &text));
  } else {
    ASSIGN_OR_RETURN(text.origin, FindHfDirectory(model));
    RETURN_IF_ERROR(OpenFolder(chat_template, date, &text));
  }
  if (!chat_template.empty() && !text.chat_template.ok()) return text.chat_template.status();
  return text;
}

}  // namespace trireme
