#include "data/chat_spans.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>

#include <optional>

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

// Survives trimming, escaping and JSON, and stands in no conversation by chance.
constexpr char kMark[] = "Zq7TriremeMark7qZ";

size_t CommonPrefix(absl::string_view a, absl::string_view b) {
  size_t size = 0;
  while (size < a.size() && size < b.size() && a[size] == b[size]) ++size;
  return size;
}

Json FirstMessages(const Json& messages, size_t count) {
  Json first = Json::array();
  for (size_t i = 0; i < count; ++i) first.push_back(messages[i]);
  return first;
}

// The text before and after the one mark in `text`; nullopt: there is not exactly one.
struct Around {
  absl::string_view before, after;
};
std::optional<Around> AroundMark(absl::string_view text) {
  const size_t at = text.find(kMark), end = at + sizeof(kMark) - 1;
  if (at == absl::string_view::npos || text.find(kMark, end) != absl::string_view::npos) return std::nullopt;
  return Around{text.substr(0, at), text.substr(end)};
}

// Copies of `message` with the mark in place of one of its texts, the likeliest to be printed first.
std::vector<Json> Marked(const Json& message) {
  std::vector<Json> marked;
  const auto add = [&](const Json::json_pointer& place) {
    if (!message.contains(place) || !message[place].is_string()) return;
    marked.push_back(message);
    marked.back()[place] = kMark;
  };
  const auto path = [](const auto&... parts) { return Json::json_pointer(absl::StrCat("/", parts...)); };
  add(path("content"));
  if (message.contains("content") && message["content"].is_array()) {
    for (size_t i = message["content"].size(); i-- > 0;) add(path("content/", i, "/text"));
  }
  if (message.contains("tool_calls") && message["tool_calls"].is_array() && !message["tool_calls"].empty()) {
    const size_t last = message["tool_calls"].size() - 1;
    for (const char* function : {"/function", ""}) {
      const std::string call = absl::StrCat("tool_calls/", last, function);
      const Json::json_pointer arguments = path(call, "/arguments");
      if (message.contains(arguments) && message[arguments].is_object()) {
        for (const auto& [key, value] : message[arguments].items()) {
          if (key.find_first_of("/~") == std::string::npos) add(path(call, "/arguments/", key));
        }
      }
      add(arguments);
      add(path(call, "/name"));
    }
  }
  return marked;
}

class SpanFinder {
 public:
  SpanFinder(const Json& messages, const std::string& name, const RenderMessages& render)
      : messages_(messages), name_(name), render_(render) {}

  absl::StatusOr<RenderedChat> Find() {
    ASSIGN_OR_RETURN(text_, render_(messages_, false));
    RenderedChat chat;
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (!messages_[i].is_object() || messages_[i].value("role", Json()) != "assistant") continue;
      ASSIGN_OR_RETURN(const size_t begin, Begin(i));
      ASSIGN_OR_RETURN(const size_t end, End(i));
      if (begin > end || (!chat.assistant.empty() && begin < chat.assistant.back().end))
        return Fail(i, "its place overlaps that of another message");
      const ByteRange span = {begin, TurnEnd(text_, begin, end, messages_[i].value("content", Json()), &chat.ends_marked)};
      if (span.begin < span.end) chat.assistant.push_back(span);
    }
    chat.text = std::move(text_);
    return chat;
  }

 private:
  absl::Status Fail(size_t i, const std::string& why) const {
    return Error(ExitCode::kData, name_, ": cannot tell where the assistant speaks in message ", i + 1, ": ", why,
                 "; a template with {% generation %} blocks says it itself");
  }

  absl::StatusOr<size_t> Begin(size_t i) {
    const absl::StatusOr<std::string> prompt = render_(FirstMessages(messages_, i), true);
    if (prompt.ok() && absl::StartsWith(text_, *prompt)) return prompt->size();
    if (i == 0) return Fail(i, prompt.ok() ? "the generation prompt is not what it begins with" : std::string(prompt.status().message()));
    // The end of the message before, then this one's header as far as the generation prompt goes.
    ASSIGN_OR_RETURN(const size_t header, EndBefore(i));
    ASSIGN_OR_RETURN(const std::string before, render_(FirstMessages(messages_, i), false));
    if (!prompt.ok()) return prompt.status();
    if (!absl::StartsWith(*prompt, before)) return Fail(i, "a generation prompt changes what stands before it");
    const absl::string_view generation_prompt = absl::string_view(*prompt).substr(before.size());
    for (const Json& marked : Marked(messages_[i])) {
      Json messages = messages_;
      messages[i] = marked;
      const absl::StatusOr<std::string> rendered = render_(messages, false);
      if (!rendered.ok()) continue;
      const std::optional<Around> around = AroundMark(*rendered);
      if (!around.has_value() || around->before.size() < header) continue;
      const absl::string_view written = around->before.substr(header);
      const size_t common = CommonPrefix(written, generation_prompt);
      if (common == 0 || common < std::min(written.size(), generation_prompt.size())) continue;
      const size_t begin = header + common;
      if (CommonPrefix(text_, around->before) >= begin) return begin;
    }
    return Fail(i, "the template writes its header otherwise than the generation prompt");
  }

  // Where message i - 1 ends in the text, by marks.
  absl::StatusOr<size_t> EndBefore(size_t i) { return MarkedEnd(i - 1); }

  absl::StatusOr<size_t> End(size_t i) {
    if (i + 1 == messages_.size()) return text_.size();
    const absl::StatusOr<std::string> whole = render_(FirstMessages(messages_, i + 1), false);
    if (whole.ok() && absl::StartsWith(text_, *whole)) return whole->size();
    return MarkedEnd(i);
  }

  // What follows message i's text up to the end of the message is what follows it when it is the last one.
  absl::StatusOr<size_t> MarkedEnd(size_t i) {
    for (const Json& marked : Marked(messages_[i])) {
      Json messages = messages_;
      messages[i] = marked;
      const absl::StatusOr<std::string> full = render_(messages, false);
      const absl::StatusOr<std::string> last = render_(FirstMessages(messages, i + 1), false);
      if (!full.ok() || !last.ok()) continue;
      const std::optional<Around> in_full = AroundMark(*full), in_last = AroundMark(*last);
      if (!in_full.has_value() || !in_last.has_value() || !absl::EndsWith(text_, in_full->after)) continue;
      if (!absl::StartsWith(in_full->after, in_last->after)) continue;
      return text_.size() - in_full->after.size() + in_last->after.size();
    }
    return Fail(i, "the template ends it otherwise when other messages follow");
  }

  const Json& messages_;
  const std::string& name_;
  const RenderMessages& render_;
  std::string text_;
};

}  // namespace

size_t TurnEnd(absl::string_view text, size_t begin, size_t end, const Json& content, bool* marked) {
  const absl::string_view turn = text.substr(begin, end - begin);
  const absl::string_view trimmed = absl::StripTrailingAsciiWhitespace(turn);
  const absl::string_view said =
      content.is_string() ? absl::StripTrailingAsciiWhitespace(content.get_ref<const std::string&>()) : "";
  if (trimmed.empty() || (!said.empty() && absl::EndsWith(trimmed, said))) {
    // White space is all that marks the end, if anything does.
    *marked = false;
    return end;
  }
  return begin + trimmed.size();
}

absl::StatusOr<RenderedChat> FindAssistantSpans(const Json& messages, const std::string& name,
                                                const RenderMessages& render) {
  return SpanFinder(messages, name, render).Find();
}

}  // namespace trireme
