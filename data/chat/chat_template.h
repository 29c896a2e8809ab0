// data/chat/chat_template.h
// A model's own chat template: conversations as the text that the model was or is to be trained on.
#ifndef TRIREME_DATA_CHAT_CHAT_TEMPLATE_H_
#define TRIREME_DATA_CHAT_CHAT_TEMPLATE_H_

#include <absl/strings/string_view.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// What a template sees. The order of keys counts: templates print objects.
struct Conversation {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();    // [{"role": ..., "content": ..., ...}, ...]
  nlohmann::ordered_json tools;                                         // null: none; else a list of JSON schemas
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();  // others that the template reads, by name
};

// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin = 0, end = 0;
  bool operator==(const ByteRange& other) const { return begin == other.begin && end == other.end; }
};

struct RenderedChat {
  std::string text;
  // What the assistant says: content and the mark of the turn's end that the template writes after it; not the header
  // before it, nor the line breaks after the mark. In order, not overlapping, none empty.
  std::vector<ByteRange> assistant;
  // False if a turn of the assistant ends without any mark: a model that is trained on it does not learn to stop there.
  bool ends_marked = true;
};

using SpecialTokens = std::map<std::string, std::string>;  // by role: bos_token, eos_token, ...

struct ChatTemplateOptions {
  SpecialTokens special_tokens;  // variables of the template
  // What strftime_now() reads, in seconds since 1970, as UTC. Unset: the clock, as local time.
  std::optional<int64_t> now;
};

// A compiled template. Cheap to copy, thread-safe.
class ChatTemplate {
 public:
  // Compiles Jinja as Transformers does (data/jinja/template.h says what is understood). Errors are kData and name
  // NAME:line and the construct: syntax errors, and what cannot be rendered exactly.
  static absl::StatusOr<ChatTemplate> Parse(absl::string_view text, const std::string& name,
                                            ChatTemplateOptions options = {});

  // The text, byte for byte as tokenizer.apply_chat_template(tokenize=False) gives it. Errors are kData: the template
  // raises (its own message is passed on), or it runs into what is refused. Beginning-of-sequence tokens that the
  // template writes are in the text: tokenize it without adding others.
  absl::StatusOr<std::string> Render(const Conversation& conversation, bool add_generation_prompt) const;

  // The text without a generation prompt, and where in it the assistant speaks: the template's {% generation %} blocks
  // where it has them; else found by rendering (data/chat/chat_spans.h says how) and verified. A conversation for which
  // no sound answer is found is an error (kData) that says which message; nothing is guessed. A conversation without
  // assistant messages has no spans.
  absl::StatusOr<RenderedChat> RenderForTraining(const Conversation& conversation) const;

  const std::string& name() const;

 private:
  struct Compiled;
  explicit ChatTemplate(std::shared_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}
  absl::Status Check(const Conversation& conversation) const;
  friend absl::StatusOr<ChatTemplate> LoadChatTemplate(const std::string& folder, ChatTemplateOptions options);

  std::shared_ptr<const Compiled> compiled_;
};

// Reads the special tokens of a model directory: those of tokenizer_config.json, then those of special_tokens_map.json,
// which older models have. Errors are kData: a file is no JSON object, or a token in it is no text.
absl::StatusOr<SpecialTokens> ReadSpecialTokens(const std::string& folder);

// The template of a model directory, found as Transformers finds it: chat_template.jinja, else `chat_template` of
// tokenizer_config.json (one, or the ones named "default" and, for conversations with tools, "tool_use"); special
// tokens as ReadSpecialTokens has them, which `options.special_tokens` override. Errors are kData: there is none
// (absl::IsNotFound), or it does not compile.
absl::StatusOr<ChatTemplate> LoadChatTemplate(const std::string& folder, ChatTemplateOptions options = {});

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_CHAT_TEMPLATE_H_
