#include "data/chat/conversation.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "data/chat/content_hash.h"
#include "launch/base/file.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxLineBytes = size_t{1} << 26;
constexpr int kMaxDepth = 64;  // Objects in objects; recursive code walks them.
constexpr absl::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};

struct NameOfRole {
  absl::string_view name;
  absl::string_view role;
};
constexpr NameOfRole kShareGptNames[] = {{"human", "user"},      {"user", "user"},           {"gpt", "assistant"},
                                         {"model", "assistant"}, {"assistant", "assistant"}, {"system", "system"},
                                         {"tool", "tool"},       {"observation", "tool"}};

// An error of the line that is read.
class Line {
 public:
  explicit Line(const std::string& place) : place_(place) {}
  template <typename... Args>
  absl::Status Error(const Args&... what) const {
    return trireme::Error(ExitCode::kData, "read ", place_, ": ", what...);
  }

 private:
  const std::string& place_;
};

std::string Shown(absl::string_view text) { return std::string(text.substr(0, 60)); }

absl::StatusOr<Json> ParseObject(absl::string_view text, const Line& line) {
  JsonProblem problem;
  std::optional<Json> object = ParseJson<Json>(text, {.max_depth = kMaxDepth}, &problem);
  if (!object.has_value()) {
    if (problem.fault == JsonFault::kZeroByte) return line.Error("not valid JSON: it holds a zero byte");
    if (problem.fault == JsonFault::kTooDeep) return line.Error("nested more than ", kMaxDepth, " deep");
    return line.Error("not valid JSON: ", problem.detail, "; every line must be one JSON object");
  }
  if (!object->is_object()) return line.Error("a JSON ", object->type_name(), "; every line must be one JSON object");
  return *std::move(object);
}

// The member, unless it is absent or null.
Json* Find(Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Strings as they are, lists of {"type": "text", "text"} joined.
absl::StatusOr<std::string> Text(const Json& content, const std::string& what, const Line& line) {
  if (const std::string* whole = JsonText(content)) return *whole;
  if (!content.is_array())
    return line.Error(what, " is a ", content.type_name(), ", not a string or a list of text parts");
  std::string text;
  for (const Json& part : content) {
    const std::string *type = JsonText(JsonMember(part, "type")), *own = JsonText(JsonMember(part, "text"));
    if (type == nullptr || *type != "text" || own == nullptr) {
      return line.Error(what, " holds a part of type \"", type != nullptr ? Shown(*type) : part.type_name(),
                        "\"; only {\"type\": \"text\", \"text\": \"...\"} can be trained on");
    }
    text += *own;
  }
  return text;
}

absl::StatusOr<std::string> StringField(Json& object, const char* key, const Line& line) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::string();
  const std::string* text = JsonText(*value);
  if (text == nullptr) return line.Error("field \"", key, "\" is a ", value->type_name(), ", not a string");
  return *text;
}

// Tables have a column for every key that any message has.
void DropNulls(Json& message) {
  for (auto member = message.begin(); member != message.end();)
    member = member->is_null() ? message.erase(member) : std::next(member);
}

// Whether an assistant's message is learned; takes the mark out, which is not the template's business.
absl::StatusOr<bool> TakeWeight(Json& message, const std::string& what, const Line& line) {
  const auto found = message.find("weight");
  if (found == message.end()) return true;
  const Json weight = *found;
  message.erase("weight");
  if (weight == 0 || weight == 1) return weight == 1;
  return line.Error(what, ".weight is ", Shown(DumpJson(weight)), "; 0 (no loss) and 1 are known");
}

// Checks and appends one message of `list`, whose name is for errors.
absl::Status AddMessage(Json message, const std::string& what, const Line& line, ConversationSample* sample) {
  if (!message.is_object()) return line.Error(what, " is a ", message.type_name(), ", not an object");
  DropNulls(message);
  const Json* role = Find(message, "role");
  if (role == nullptr || !role->is_string()) return line.Error(what, " has no role (a string)");
  const std::string name = JsonTextOr(*role, "");
  if (std::find(std::begin(kRoles), std::end(kRoles), name) == std::end(kRoles))
    return line.Error(what, " has the unknown role \"", Shown(name), "\"; known are: ", absl::StrJoin(kRoles, ", "));
  if (Json* content = Find(message, "content"); content != nullptr) {
    ASSIGN_OR_RETURN(std::string text, Text(*content, absl::StrCat(what, ".content"), line));
    *content = std::move(text);
  } else if (name != "assistant" || Find(message, "tool_calls") == nullptr) {
    return line.Error(what, " has no content");
  }
  if (name == "assistant") {
    ASSIGN_OR_RETURN(const bool learned, TakeWeight(message, what, line));
    sample->learned.push_back(learned);
  }
  sample->conversation.messages.push_back(std::move(message));
  return absl::OkStatus();
}

absl::Status AddMessages(Json& list, const char* name, const Line& line, ConversationSample* sample) {
  if (!list.is_array()) return line.Error("field \"", name, "\" is a ", list.type_name(), ", not a list of messages");
  for (size_t i = 0; i < list.size(); ++i)
    RETURN_IF_ERROR(AddMessage(std::move(list[i]), absl::StrCat(name, "[", i, "]"), line, sample));
  return absl::OkStatus();
}

absl::Status AddShareGpt(Json& list, const Line& line, ConversationSample* sample) {
  if (!list.is_array()) return line.Error("field \"conversations\" is a ", list.type_name(), ", not a list of turns");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string what = absl::StrCat("conversations[", i, "]");
    Json& turn = list[i];
    if (!turn.is_object()) return line.Error(what, " is a ", turn.type_name(), ", not an object");
    // Files under this name that already speak of role and content are common.
    if (Find(turn, "from") == nullptr && Find(turn, "role") != nullptr) {
      RETURN_IF_ERROR(AddMessage(std::move(turn), what, line, sample));
      continue;
    }
    Json* from = Find(turn, "from");
    Json* value = Find(turn, "value");
    if (from == nullptr || !from->is_string()) return line.Error(what, " has no \"from\" (a string)");
    if (value == nullptr) return line.Error(what, " has no \"value\"");
    const std::string name = JsonTextOr(*from, "");
    const auto known = std::find_if(std::begin(kShareGptNames), std::end(kShareGptNames),
                                    [&name](const NameOfRole& entry) { return entry.name == name; });
    if (known == std::end(kShareGptNames)) {
      return line.Error(what, " is from the unknown \"", Shown(name), "\"; known are: ",
                        absl::StrJoin(kShareGptNames, ", ", [](std::string* out, const NameOfRole& entry) {
                          absl::StrAppend(out, entry.name);
                        }));
    }
    Json message = Json::object();
    message["role"] = std::string(known->role);
    message["content"] = std::move(*value);
    for (auto& [key, member] : turn.items()) {
      if (key != "from" && key != "value") message[key] = member;
    }
    RETURN_IF_ERROR(AddMessage(std::move(message), what, line, sample));
  }
  return absl::OkStatus();
}

// A "system" beside the list is what the list could begin with.
absl::Status AddSystem(Json& object, const Line& line, ConversationSample* sample) {
  ASSIGN_OR_RETURN(std::string system, StringField(object, "system", line));
  Json& messages = sample->conversation.messages;
  if (system.empty() || messages.empty()) return absl::OkStatus();
  const std::string first = JsonTextOr(JsonMember(messages[0], "role"), "");
  if (first != "system" && first != "developer") {
    messages.insert(messages.begin(), Json{{"role", "system"}, {"content", std::move(system)}});
  } else if (JsonMember(messages[0], "content") != system) {
    return line.Error("field \"system\" says something else than the first message, which is a system message too");
  }
  return absl::OkStatus();
}

absl::Status AddAlpaca(Json& object, const Line& line, ConversationSample* sample) {
  if (const Json* history = Find(object, "history"); history != nullptr && !history->empty())
    return line.Error("field \"history\": earlier turns are not read from Alpaca's form; write \"messages\"");
  ASSIGN_OR_RETURN(std::string system, StringField(object, "system", line));
  ASSIGN_OR_RETURN(std::string user, StringField(object, "instruction", line));
  ASSIGN_OR_RETURN(const std::string input, StringField(object, "input", line));
  ASSIGN_OR_RETURN(std::string assistant, StringField(object, "output", line));
  if (!input.empty()) absl::StrAppend(&user, user.empty() ? "" : "\n\n", input);
  if (user.empty() && assistant.empty()) return absl::OkStatus();
  const auto add = [&](const char* role, std::string content) {
    return AddMessage(Json{{"role", role}, {"content", std::move(content)}}, role, line, sample);
  };
  if (!system.empty()) RETURN_IF_ERROR(add("system", std::move(system)));
  RETURN_IF_ERROR(add("user", std::move(user)));
  return add("assistant", std::move(assistant));
}

bool AreObjects(const Json& list) {
  return list.is_array() && std::all_of(list.begin(), list.end(), [](const Json& one) { return one.is_object(); });
}

// Names of apply_chat_template()'s own parameters are no variables of a template.
absl::Status CheckVariables(const Json& variables, const Line& line) {
  constexpr absl::string_view kParameters[] = {"add_generation_prompt",
                                               "chat_template",
                                               "continue_final_message",
                                               "conversation",
                                               "max_length",
                                               "messages",
                                               "padding",
                                               "return_assistant_tokens_mask",
                                               "return_dict",
                                               "return_tensors",
                                               "sanitize_control_tokens",
                                               "tokenize",
                                               "tokenizer_kwargs",
                                               "tools",
                                               "truncation"};
  for (const auto& [name, value] : variables.items()) {
    if (std::find(std::begin(kParameters), std::end(kParameters), name) != std::end(kParameters))
      return line.Error("chat_template_kwargs.", name, " is no variable of a template",
                        name == "tools" ? "; write the field \"tools\" beside \"messages\"" : "; leave it out");
    if (name == "documents" && !value.is_null() && !AreObjects(value))
      return line.Error("chat_template_kwargs.documents is not a list of objects with \"title\" and \"text\"");
  }
  return absl::OkStatus();
}

// What the template is given besides the messages.
absl::Status AddTools(Json& object, const Line& line, Conversation* conversation) {
  if (Json* tools = Find(object, "tools"); tools != nullptr) {
    // Data sets whose columns have one type write the list as text.
    if (const std::string* text = JsonText(*tools)) {
      ASSIGN_OR_RETURN(Json wrapped,
                       ParseObject(absl::StrCat("{\"tools\":", text->empty() ? "null" : *text, "}"), line));
      *tools = std::move(wrapped["tools"]);
    }
    if (!tools->is_null() && !AreObjects(*tools))
      return line.Error("field \"tools\" is not a list of objects (the tools' JSON schemas)");
    conversation->tools = std::move(*tools);
  }
  if (Json* variables = Find(object, "chat_template_kwargs"); variables != nullptr) {
    if (!variables->is_object())
      return line.Error("field \"chat_template_kwargs\" is a ", variables->type_name(), ", not an object");
    RETURN_IF_ERROR(CheckVariables(*variables, line));
    conversation->variables = std::move(*variables);
  }
  return absl::OkStatus();
}

// Tables have columns that only other lines fill, so a key without a value says nothing where another has one.
absl::StatusOr<SampleForm> FormOf(Json& object, const Line& line, bool count_nulls = false) {
  const auto has = [&](const char* key) { return count_nulls ? object.contains(key) : Find(object, key) != nullptr; };
  if (has("messages")) return SampleForm::kMessages;
  if (has("conversations")) return SampleForm::kShareGpt;
  if (has("prompt") && has("completion")) {
    const Json &prompt = JsonMember(object, "prompt"), &completion = JsonMember(object, "completion");
    const bool lists = prompt.is_array();
    if (lists != completion.is_array())
      return line.Error("\"prompt\" is a ", prompt.type_name(), " but \"completion\" a ", completion.type_name(),
                        "; both must be strings or both lists of messages");
    return lists ? SampleForm::kPromptMessages : SampleForm::kPromptText;
  }
  if (has("instruction") && has("output")) return SampleForm::kAlpaca;
  if (has("text")) return SampleForm::kText;
  if (!count_nulls) return FormOf(object, line, /*count_nulls=*/true);
  std::vector<std::string> names;
  for (const auto& item : object.items()) names.push_back(Shown(item.key()));
  return line.Error("no form that is known (there are the fields: ", absl::StrJoin(names, ", ").substr(0, 300),
                    "); known are \"messages\", \"conversations\", \"prompt\" with \"completion\", \"instruction\" "
                    "with \"output\", and \"text\"");
}

}  // namespace

const char* SampleFormName(SampleForm form) {
  switch (form) {
    case SampleForm::kMessages:
      return "messages";
    case SampleForm::kShareGpt:
      return "conversations (ShareGPT)";
    case SampleForm::kAlpaca:
      return "instruction and output (Alpaca)";
    case SampleForm::kPromptMessages:
      return "prompt and completion of messages";
    case SampleForm::kPromptText:
      return "prompt and completion";
    case SampleForm::kText:
      return "text";
  }
  return "";
}

bool LooksLikeSamples(absl::string_view path) {
  if (!absl::ConsumeSuffix(&path, ".gz")) absl::ConsumeSuffix(&path, ".zst");
  return absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".ndjson") || absl::EndsWith(path, ".json");
}

absl::StatusOr<ConversationSample> ParseConversation(absl::string_view text, const std::string& place) {
  const Line line(place);
  ASSIGN_OR_RETURN(Json object, ParseObject(text, line));
  ConversationSample sample;
  sample.place = place;
  sample.line_hash = HashBytes(text.data(), text.size());
  ASSIGN_OR_RETURN(sample.form, FormOf(object, line));
  switch (sample.form) {
    case SampleForm::kMessages:
      RETURN_IF_ERROR(AddMessages(object["messages"], "messages", line, &sample));
      RETURN_IF_ERROR(AddSystem(object, line, &sample));
      break;
    case SampleForm::kShareGpt:
      RETURN_IF_ERROR(AddShareGpt(object["conversations"], line, &sample));
      RETURN_IF_ERROR(AddSystem(object, line, &sample));
      break;
    case SampleForm::kAlpaca:
      RETURN_IF_ERROR(AddAlpaca(object, line, &sample));
      break;
    case SampleForm::kPromptMessages:
      RETURN_IF_ERROR(AddMessages(object["prompt"], "prompt", line, &sample));
      sample.prompt_messages = sample.conversation.messages.size();
      RETURN_IF_ERROR(AddMessages(object["completion"], "completion", line, &sample));
      break;
    case SampleForm::kPromptText: {
      ASSIGN_OR_RETURN(sample.prompt, StringField(object, "prompt", line));
      ASSIGN_OR_RETURN(sample.completion, StringField(object, "completion", line));
      break;
    }
    case SampleForm::kText: {
      ASSIGN_OR_RETURN(sample.completion, StringField(object, "text", line));
      break;
    }
  }
  if (sample.is_chat()) RETURN_IF_ERROR(AddTools(object, line, &sample.conversation));
  sample.content_hash = ContentHash(sample);
  return sample;
}

absl::StatusOr<ConversationReader> ConversationReader::Open(std::vector<std::string> paths) {
  ConversationReader reader;
  std::vector<std::string> problems;  // All at once: each is another file to look for.
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      problems.push_back(absl::StrCat("read ", path, ": ", error ? error.message() : "no such file"));
      continue;
    }
    if (std::filesystem::is_directory(path, error)) {
      problems.push_back(absl::StrCat("read ", path, ": it is a folder; name the JSONL files in it"));
      continue;
    }
    const uintmax_t size = std::filesystem::file_size(path, error);
    if (!error) reader.bytes_total_ += static_cast<int64_t>(size);
  }
  if (!problems.empty()) return Error(ExitCode::kData, absl::StrJoin(problems, "\n  "));
  reader.paths_ = std::move(paths);
  return reader;
}

absl::StatusOr<bool> ConversationReader::Next(ConversationSample* sample) {
  std::string text;
  while (true) {
    if (!reader_.has_value()) {
      if (next_path_ == paths_.size()) return false;
      ASSIGN_OR_RETURN(reader_, LineReader::Open(paths_[next_path_++], kMaxLineBytes));
      form_.reset();
    }
    ASSIGN_OR_RETURN(const bool found, reader_->Next(&text));
    if (!found) {
      bytes_of_closed_files_ += reader_->bytes_read();
      reader_.reset();
      continue;
    }
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string place = absl::StrCat(reader_->path(), ":", reader_->line());
    ASSIGN_OR_RETURN(*sample, ParseConversation(text, place));
    if (!form_.has_value()) {
      form_ = sample->form;
      form_line_ = reader_->line();
    } else if (*form_ != sample->form) {
      return Error(ExitCode::kData, "read ", reader_->path(), ": line ", form_line_, " holds ", SampleFormName(*form_),
                   " but line ", reader_->line(), " ", SampleFormName(sample->form),
                   "; put samples of different forms into files of their own");
    }
    return true;
  }
}

}  // namespace trireme
