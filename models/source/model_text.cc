#include "models/source/model_text.h"

#include <utility>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/base/json_file.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_tokenizer_json.h"
#include "models/formats/hf/hf_config.h"
#include "models/formats/hf/hf_directory.h"
#include "models/source/prompt.h"
#include "models/weights/run_text.h"

namespace trireme {
namespace {

constexpr int64_t kTemplateNow = 1721952000;  // 26 Jul 2024, what Llama's templates take where there is no clock.

// The template to use instead of a model's own.
struct GivenTemplate {
  std::string text, name;  // text "": there is none
};

ChatTemplateOptions OptionsOn(TemplateDate date) {
  ChatTemplateOptions options;
  if (date == TemplateDate::kOneDay) options.now = kTemplateNow;
  return options;
}

absl::Status OpenFolder(const GivenTemplate& given, TemplateDate date, ModelText* text) {
  const std::string &folder = text->origin, path = FindTokenizer(folder);
  if (path.empty()) {
    return Error(ExitCode::kData, "tokenizer: ", folder,
                 " holds neither tokenizer.json nor tokenizer.model; name a folder with the model's in "
                 "data.conversations.tokenizer");
  }
  ASSIGN_OR_RETURN(text->tokenizer, Tokenizer::Load(path));
  ASSIGN_OR_RETURN(text->prefix_ids, PrefixIds(folder, *text->tokenizer));
  ChatTemplateOptions options = OptionsOn(date);
  ASSIGN_OR_RETURN(options.special_tokens, ReadSpecialTokens(folder));
  std::optional<int64_t> end = SpecialTokenId(options.special_tokens, "eos_token", *text->tokenizer);
  if (!end.has_value() && Exists(folder + "/" + kHfConfigName)) {
    const absl::StatusOr<HfTokenIds> ids = ReadHfTokenIds(folder + "/" + kHfConfigName);
    if (ids.ok() && !ids->eos.empty()) end = ids->eos[0];
  }
  text->end_id = static_cast<int32_t>(end.value_or(text->tokenizer->end_of_document()));
  text->chat_template =
      given.text.empty() ? LoadChatTemplate(folder, options) : ChatTemplate::Parse(given.text, given.name, options);
  return absl::OkStatus();
}

absl::Status OpenGgufText(const GivenTemplate& given, TemplateDate date, ModelText* text) {
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
  if (!given.text.empty()) {
    text->chat_template = ChatTemplate::Parse(given.text, given.name, options);
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
  ModelText text{model, nullptr, absl::UnknownError(""), {}, -1, ""};
  GivenTemplate given;
  if (!chat_template.empty()) {
    ASSIGN_OR_RETURN(text.given_template, ReadGivenTemplate(chat_template));
    const bool is_file = text.given_template != chat_template;
    given = {text.given_template, is_file ? chat_template : "chat_template"};
  }
  if (NamesGguf(model)) {
    RETURN_IF_ERROR(OpenGgufText(given, date, &text));
  } else {
    ASSIGN_OR_RETURN(text.origin, FindHfDirectory(model));
    RETURN_IF_ERROR(OpenFolder(given, date, &text));
  }
  if (!chat_template.empty() && !text.chat_template.ok()) return text.chat_template.status();
  return text;
}

}  // namespace trireme
