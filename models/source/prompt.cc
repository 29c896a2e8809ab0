#include "models/source/prompt.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/unicode/unicode.h"
#include "models/formats/base/json_file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// Adds the special tokens that a TemplateProcessing post_processor puts before the text.
absl::Status AddPrefix(const Json& processor, const std::string& name, const Tokenizer& tokenizer,
                       std::vector<int64_t>* ids) {
  if (processor.is_null()) return absl::OkStatus();
  const auto bad = [&name](const auto&... what) {
    return Error(ExitCode::kData, "tokenizer: ", name, ": its post_processor ", what...);
  };
  const std::string* given = JsonText(JsonMember(processor, "type"));
  if (given == nullptr) return bad("has no type (a string)");
  const std::string& type = *given;
  if (type == "Sequence") {
    if (!JsonMember(processor, "processors").is_array()) return bad("is a Sequence without processors");
    for (const Json& part : JsonList(JsonMember(processor, "processors")))
      RETURN_IF_ERROR(AddPrefix(part, name, tokenizer, ids));
  }
  if (type == "Sequence" || type == "ByteLevel") return absl::OkStatus();
  if (type != "TemplateProcessing")
    return Error(ExitCode::kData, "tokenizer: ", name, ": a post_processor of type ", type.substr(0, 60),
                 " is not supported; Sequence, ByteLevel and TemplateProcessing are");
  const Json& single = JsonMember(processor, "single");
  if (!single.is_array()) return bad("is a TemplateProcessing without a list \"single\"");
  for (const Json& piece : JsonList(single)) {
    if (!piece.is_object()) return bad("has a piece that is no object");
    if (!piece.contains("SpecialToken")) return absl::OkStatus();
    const std::string* called = JsonText(JsonMember(JsonMember(piece, "SpecialToken"), "id"));
    if (called == nullptr) return bad("has a SpecialToken without id (a string)");
    // What is called so is said beside: one token or several.
    const Json& numbers = JsonMember(JsonMember(JsonMember(processor, "special_tokens"), *called), "ids");
    for (const Json& number : JsonList(numbers)) {
      const std::optional<int64_t> id = JsonInteger(number);
      if (!id.has_value() || *id < 0 || *id >= tokenizer.vocab_size())
        return bad("gives ", *called, " an id that is none of the tokenizer's ", tokenizer.vocab_size());
      ids->push_back(*id);
    }
    if (const int32_t id = tokenizer.TokenId(*called); JsonList(numbers).empty() && id >= 0) ids->push_back(id);
  }
  return absl::OkStatus();
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
    if (JsonMember(config, "add_bos_token") == false) return ids;
    for (const char* bos : {"<s>", "<bos>"}) {
      if (ids.empty() && tokenizer.TokenId(bos) >= 0) ids.push_back(tokenizer.TokenId(bos));
    }
    return ids;
  }
  const std::string path = tokenizer_folder + "/tokenizer.json";
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(path));
  return PrefixIdsOf(contents, path, tokenizer);
}

absl::StatusOr<std::vector<int64_t>> PrefixIdsOf(const std::string& tokenizer_json, const std::string& name,
                                                 const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const Json file, ParseJsonObject(tokenizer_json, name));
  std::vector<int64_t> ids;
  RETURN_IF_ERROR(AddPrefix(JsonMember(file, "post_processor"), name, tokenizer, &ids));
  return ids;
}

absl::StatusOr<std::string> ChatPrompt(const absl::StatusOr<ChatTemplate>& chat_template,
                                       const std::optional<std::string>& system, const std::string& user) {
  const auto render = [&]() -> absl::StatusOr<std::string> {
    RETURN_IF_ERROR(chat_template.status());
    Conversation conversation;
    if (system.has_value()) conversation.messages.push_back({{"role", "system"}, {"content", *system}});
    conversation.messages.push_back({{"role", "user"}, {"content", user}});
    return chat_template->Render(conversation, /*add_generation_prompt=*/true);
  };
  absl::StatusOr<std::string> text = render();
  if (!text.ok()) {
    return Error(ExitCode::kData, "--chat: ", text.status().message(),
                 "; leave --chat out to let the model continue the prompt as it is");
  }
  return text;
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
