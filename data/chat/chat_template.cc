#include "data/chat/chat_template.h"

#include <algorithm>

#include "data/chat/chat_spans.h"
#include "data/jinja/template.h"
#include "launch/base/file.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxFileBytes = size_t{64} << 20;
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};
constexpr const char* kReasoning[] = {"reasoning_content", "thinking", "reasoning"};

// Does what Transformers does: keys without a value are absent, and a message's reasoning, under whichever name it
// came, has the names that templates read.
Json AsTemplatesSee(const Json& message) {
  if (!message.is_object()) return message;
  Json seen = Json::object(), reasoning;
  for (const char* name : kReasoning) {
    if (reasoning.is_null()) reasoning = JsonMember(message, name);
  }
  if (!reasoning.is_null()) seen["thinking"] = reasoning;
  for (const auto& [key, value] : message.items()) {
    if (!value.is_null()) seen[key] = value;
  }
  if (!reasoning.is_null()) seen["reasoning_content"] = reasoning;
  return seen;
}

absl::StatusOr<Json> ReadObject(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  JsonProblem problem;
  std::optional<Json> json = ParseJson<Json>(text, {}, &problem);
  if (!json.has_value() || !json->is_object()) return Error(ExitCode::kData, path, " is not a JSON object");
  return *std::move(json);
}

// Adds those that `config` names: strings, or objects with the string as `content`.
absl::Status AddSpecialTokens(const std::string& file, const Json& config, SpecialTokens* tokens) {
  for (const char* name : kSpecialTokens) {
    const Json& token = JsonMember(config, name);
    const Json& content = token.is_object() ? JsonMember(token, "content") : token;
    if (const std::string* text = JsonText(content)) {
      tokens->emplace(name, *text);
    } else if (!token.is_null()) {
      return Error(ExitCode::kData, file, ": ", name, " is ", DumpJson(token).substr(0, 60),
                   ", which is neither a text nor an object with one as \"content\"");
    }
  }
  return absl::OkStatus();
}

// The templates of a model directory by name.
absl::StatusOr<std::map<std::string, std::string>> ReadTemplates(const std::string& folder, const Json& config) {
  std::map<std::string, std::string> templates;
  const std::string file = folder + "/chat_template.jinja";
  const std::string tool_file = folder + "/additional_chat_templates/tool_use.jinja";
  if (Exists(file)) {
    ASSIGN_OR_RETURN(templates["default"], ReadFile(file, kMaxFileBytes));
    if (Exists(tool_file)) {
      ASSIGN_OR_RETURN(templates["tool_use"], ReadFile(tool_file, kMaxFileBytes));
    }
    return templates;
  }
  const Json& chat = JsonMember(config, "chat_template");
  if (const std::string* only = JsonText(chat)) templates["default"] = *only;
  for (const Json& entry : JsonList(chat)) {
    const std::string *name = JsonText(JsonMember(entry, "name")), *text = JsonText(JsonMember(entry, "template"));
    if (name == nullptr || text == nullptr) {
      return Error(ExitCode::kData, folder,
                   "/tokenizer_config.json: an entry of chat_template is not {name, template}");
    }
    templates[*name] = *text;
  }
  return templates;
}

absl::Status NotFound(const std::string& folder) {
  const absl::Status error =
      Error(ExitCode::kData, folder,
            " has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)");
  absl::Status status(absl::StatusCode::kNotFound, error.message());
  error.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { status.SetPayload(url, payload); });
  return status;
}

}  // namespace

struct ChatTemplate::Compiled {
  std::string name;
  ChatTemplateOptions options;
  jinja::Template text;
  std::optional<jinja::Template> with_tools;

  const jinja::Template& For(const Conversation& conversation) const {
    return with_tools.has_value() && !conversation.tools.is_null() ? *with_tools : text;
  }

  absl::StatusOr<jinja::Rendering> Render(const Conversation& conversation, const Json& messages,
                                          bool add_generation_prompt) const {
    Json variables = {{"messages", Json::array()}, {"tools", conversation.tools}, {"documents", nullptr}};
    for (const Json& message : messages) variables["messages"].push_back(AsTemplatesSee(message));
    for (const auto& [token, value] : options.special_tokens) variables[token] = value;
    for (const auto& [key, value] : conversation.variables.items()) variables[key] = value;
    variables["add_generation_prompt"] = add_generation_prompt;
    jinja::Environment environment;
    environment.now = options.now;
    return For(conversation).Render(variables, environment);
  }
};

const std::string& ChatTemplate::name() const { return compiled_->name; }

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(absl::string_view text, const std::string& name,
                                                 ChatTemplateOptions options) {
  ASSIGN_OR_RETURN(jinja::Template compiled, jinja::Template::Parse(text, name));
  return ChatTemplate(std::make_shared<const Compiled>(Compiled{name, std::move(options), std::move(compiled), {}}));
}

absl::StatusOr<std::string> ChatTemplate::Render(const Conversation& conversation, bool add_generation_prompt) const {
  RETURN_IF_ERROR(Check(conversation));
  ASSIGN_OR_RETURN(jinja::Rendering rendering,
                   compiled_->Render(conversation, conversation.messages, add_generation_prompt));
  return std::move(rendering.text);
}

absl::StatusOr<RenderedChat> ChatTemplate::RenderForTraining(const Conversation& conversation) const {
  RETURN_IF_ERROR(Check(conversation));
  if (!compiled_->For(conversation).has_generation()) {
    return FindAssistantSpans(conversation.messages, name(),
                              [&](const Json& messages, bool add_generation_prompt) -> absl::StatusOr<std::string> {
                                ASSIGN_OR_RETURN(jinja::Rendering rendering,
                                                 compiled_->Render(conversation, messages, add_generation_prompt));
                                return std::move(rendering.text);
                              });
  }
  ASSIGN_OR_RETURN(jinja::Rendering rendering, compiled_->Render(conversation, conversation.messages, false));
  if (rendering.generation_captured) {
    return Error(ExitCode::kData, name(),
                 ": a {% generation %} block within a macro, {% set %} or {% filter %} is not supported");
  }
  RenderedChat chat;
  chat.text = std::move(rendering.text);
  for (const auto& [begin, end] : rendering.generations) {
    size_t turn_end = end;
    for (const Json& message : conversation.messages) {
      if (JsonMember(message, "role") != "assistant") continue;
      turn_end = std::min(turn_end, TurnEnd(chat.text, begin, end, JsonMember(message, "content"), &chat.ends_marked));
    }
    if (begin < turn_end) chat.assistant.push_back({begin, turn_end});
  }
  return chat;
}

absl::Status ChatTemplate::Check(const Conversation& conversation) const {
  if (!conversation.messages.is_array()) return Error(ExitCode::kData, name(), ": the messages are not a list");
  for (const Json& message : conversation.messages) {
    if (!message.is_object()) return Error(ExitCode::kData, name(), ": a message is not an object");
  }
  if (!conversation.variables.is_object()) return Error(ExitCode::kData, name(), ": the variables are not an object");
  return absl::OkStatus();
}

absl::StatusOr<SpecialTokens> ReadSpecialTokens(const std::string& folder) {
  SpecialTokens tokens;
  for (const char* name : {kTokenizerConfig, "special_tokens_map.json"}) {
    const std::string file = absl::StrCat(folder, "/", name);
    if (!Exists(file)) continue;
    ASSIGN_OR_RETURN(const Json config, ReadObject(file));
    RETURN_IF_ERROR(AddSpecialTokens(file, config, &tokens));
  }
  return tokens;
}

absl::StatusOr<ChatTemplate> LoadChatTemplate(const std::string& folder, ChatTemplateOptions options) {
  Json config = Json::object();
  if (const std::string file = absl::StrCat(folder, "/", kTokenizerConfig); Exists(file)) {
    ASSIGN_OR_RETURN(config, ReadObject(file));
  }
  ASSIGN_OR_RETURN(const auto templates, ReadTemplates(folder, config));
  const auto found = templates.find("default");
  if (found == templates.end()) return NotFound(folder);
  ASSIGN_OR_RETURN(SpecialTokens tokens, ReadSpecialTokens(folder));
  options.special_tokens.merge(tokens);
  const std::string name =
      folder + (Exists(folder + "/chat_template.jinja") ? "/chat_template.jinja" : " (chat_template)");
  ASSIGN_OR_RETURN(jinja::Template text, jinja::Template::Parse(found->second, name));
  std::optional<jinja::Template> with_tools;
  if (const auto tools = templates.find("tool_use"); tools != templates.end()) {
    ASSIGN_OR_RETURN(with_tools, jinja::Template::Parse(tools->second, name + " tool_use"));
  }
  return ChatTemplate(std::make_shared<const ChatTemplate::Compiled>(
      ChatTemplate::Compiled{name, std::move(options), std::move(text), std::move(with_tools)}));
}

}  // namespace trireme
