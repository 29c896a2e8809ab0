#include "trainer/prompt.h"

#include <absl/strings/match.h>
#include <absl/strings/str_replace.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/unicode.h"
#include "models/formats/json_file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr char kStart[] = "<|im_start|>", kEnd[] = "<|im_end|>";

// Of a TemplateProcessing post_processor: the special tokens before the text.
void AddPrefix(const Json& processor, const Tokenizer& tokenizer, std::vector<int64_t>* ids) {
  if (!processor.is_object()) return;
  const std::string type = processor.value("type", "");
  if (type == "Sequence" && processor.contains("processors")) {
    for (const Json& part : processor["processors"]) AddPrefix(part, tokenizer, ids);
  }
  if (type != "TemplateProcessing" || !processor.contains("single")) return;
  for (const Json& piece : processor["single"]) {
    if (!piece.is_object() || !piece.contains("SpecialToken")) return;
    const Json& token = piece["SpecialToken"];
    const int32_t id = token.is_object() ? tokenizer.TokenId(token.value("id", "")) : -1;
    if (id >= 0) ids->push_back(id);
  }
}

// The template's own system message: what its literal '<|im_start|>system\n...<|im_end|>' holds; nullopt when the only
// system messages it writes are the caller's.
std::optional<std::string> DefaultSystem(const std::string& source) {
  const std::string opening = absl::StrCat(kStart, "system\n");
  for (size_t at = source.find(opening); at != std::string::npos; at = source.find(opening, at + 1)) {
    const size_t begin = at + opening.size(), end = source.find(kEnd, begin);
    if (end == std::string::npos) continue;
    const std::string text = source.substr(begin, end - begin);
    // A quote ends the literal: what follows is an expression.
    if (!text.empty() && text.find_first_of("'\"{}\\") == std::string::npos) return text;
  }
  return std::nullopt;
}

// Bytes of the text up to the last character that is whole. Invalid bytes count as whole: they are repaired.
size_t CompleteBytes(const std::string& text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const bool leads = byte >= 0xC2 && byte <= 0xF4;
    const size_t needed = !leads ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    return needed > back ? text.size() - back : text.size();
  }
  return text.size();
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> PrefixIds(const std::string& tokenizer_folder, const Tokenizer& tokenizer) {
  std::vector<int64_t> ids;
  std::error_code error;
  if (!std::filesystem::exists(tokenizer_folder + "/tokenizer.json", error)) {
    // A SentencePiece model says nothing about it; Transformers begins with <s> unless told otherwise.
    Json config = Json::object();
    if (std::filesystem::exists(tokenizer_folder + "/tokenizer_config.json", error)) {
      ASSIGN_OR_RETURN(config, ReadJsonObject(tokenizer_folder + "/tokenizer_config.json"));
    }
    if (config.value("add_bos_token", Json(true)) == false) return ids;
    for (const char* bos : {"<s>", "<bos>"}) {
      if (ids.empty() && tokenizer.TokenId(bos) >= 0) ids.push_back(tokenizer.TokenId(bos));
    }
    return ids;
  }
  ASSIGN_OR_RETURN(const Json file, ReadJsonObject(tokenizer_folder + "/tokenizer.json"));
  if (file.contains("post_processor")) AddPrefix(file["post_processor"], tokenizer, &ids);
  return ids;
}

absl::StatusOr<std::string> ReadChatTemplate(const std::string& folder) {
  std::error_code error;
  const std::string own_file = folder + "/chat_template.jinja", config_file = folder + "/tokenizer_config.json";
  if (std::filesystem::exists(own_file, error)) return ReadFile(own_file);
  if (std::filesystem::exists(config_file, error)) {
    ASSIGN_OR_RETURN(const Json config, ReadJsonObject(config_file));
    const Json chat = config.value("chat_template", Json());
    if (chat.is_string()) return chat.get<std::string>();
    // Several by name.
    if (chat.is_array()) {
      for (const Json& entry : chat) {
        if (entry.is_object() && entry.value("name", "") == "default") return entry.value("template", "");
      }
    }
  }
  return Error(ExitCode::kData, "--chat: ", folder,
               " has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); leave --chat "
               "out to let the model continue the prompt as it is");
}

absl::StatusOr<std::string> RenderChat(const std::string& chat_template, const std::optional<std::string>& system,
                                       const std::string& user) {
  // Inside Jinja's literals a line break is written \n.
  const std::string source = absl::StrReplaceAll(chat_template, {{"\\n", "\n"}});
  if (!absl::StrContains(source, absl::StrCat(kStart, "assistant\n")) || !absl::StrContains(source, kEnd) ||
      absl::StrContains(source, "bos_token")) {
    return Error(ExitCode::kData, "--chat: the model's chat template is not ChatML (", kStart, "role ... ", kEnd,
                 "), the only form known here; write the whole prompt yourself and leave --chat out");
  }
  const auto message = [](absl::string_view role, absl::string_view content) {
    return absl::StrCat(kStart, role, "\n", content, kEnd, "\n");
  };
  const std::optional<std::string> first = system.has_value() ? system : DefaultSystem(source);
  return absl::StrCat(first.has_value() ? message("system", *first) : "", message("user", user), kStart, "assistant\n");
}

std::string TextStream::Push(int64_t id) {
  ids_.push_back(static_cast<int32_t>(id));
  // Decoded whole each time: what a token says may depend on those before it.
  const std::string text = tokenizer_.Decode(ids_);
  const size_t end = std::max(given_bytes_, CompleteBytes(text));
  const std::string complete = RepairUtf8(absl::string_view(text).substr(given_bytes_, end - given_bytes_));
  given_bytes_ = end;
  return complete;
}

std::string TextStream::Finish() {
  const std::string text = tokenizer_.Decode(ids_);
  return RepairUtf8(absl::string_view(text).substr(std::min(given_bytes_, text.size())));
}

}  // namespace trireme
