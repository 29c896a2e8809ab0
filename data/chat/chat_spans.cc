#include "data/chat/chat_spans.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "launch/base/json.h"

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

bool IsWord(char c) { return absl::ascii_isalnum(c) || c == '_' || (c & 0x80) != 0; }

// How much `a` and `b` begin alike, without the part of a tag (<...> or [...]) in which they come apart. nullopt: they
// come apart within a word.
std::optional<size_t> CommonTags(absl::string_view a, absl::string_view b) {
  size_t size = CommonPrefix(a, b);
  if (size == a.size() || size == b.size()) return size;
  const absl::string_view common = a.substr(0, size);
  for (const auto& [open, close] : {std::make_pair('<', '>'), std::make_pair('[', ']')}) {
    const size_t begin = common.rfind(open);
    if (begin != absl::string_view::npos && common.find(close, begin) == absl::string_view::npos)
      size = std::min(size, begin);
  }
  if (size == common.size() && size > 0 && IsWord(common.back()) && (IsWord(a[size]) || IsWord(b[size])))
    return std::nullopt;
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

// A copy of a message with the mark in place of one of its texts.
struct Marking {
  Json message;
  bool is_content = false, is_argument = false;  // the text is what is said; an argument of the last call of a tool
};

std::vector<Marking> Markings(const Json& message) {
  std::vector<Marking> markings;
  const auto add = [&](const std::string& path, bool is_content, bool is_argument) {
    const Json::json_pointer place(path);
    if (!message.contains(place) || !message[place].is_string()) return;  // contains() looks first
    markings.push_back({message, is_content, is_argument});
    markings.back().message[place] = kMark;
  };
  const Json& content = JsonMember(message, "content");
  add("/content", !absl::StripAsciiWhitespace(JsonTextOr(content, "")).empty(), false);
  for (size_t i = JsonList(content).size(); i-- > 0;) add(absl::StrCat("/content/", i, "/text"), true, false);
  if (const size_t calls = JsonList(JsonMember(message, "tool_calls")).size(); calls > 0) {
    const size_t last = calls - 1;
    for (const char* function : {"/function", ""}) {
      const std::string call = absl::StrCat("/tool_calls/", last, function);
      const Json::json_pointer arguments(call + "/arguments");
      if (message.contains(arguments) && message[arguments].is_object()) {
        for (const auto& [key, value] : message[arguments].items()) {
          if (key.find_first_of("/~") == std::string::npos) add(absl::StrCat(call, "/arguments/", key), false, true);
        }
      }
      add(call + "/arguments", false, true);
      add(call + "/name", false, false);
    }
  }
  return markings;
}

class SpanFinder {
 public:
  SpanFinder(const Json& messages, const std::string& name, const RenderMessages& render)
      : messages_(messages), name_(name), render_(render) {}

  absl::StatusOr<RenderedChat> Find() {
    ASSIGN_OR_RETURN(text_, render_(messages_, false));
    RenderedChat chat;
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (JsonMember(messages_[i], "role") != "assistant") continue;
      ASSIGN_OR_RETURN(const size_t begin, Begin(i));
      ASSIGN_OR_RETURN(const size_t end, End(i));
      if (begin > end || (!chat.assistant.empty() && begin < chat.assistant.back().end))
        return Fail(i, "its place overlaps that of another message");
      RETURN_IF_ERROR(CheckContent(i, {begin, end}));
      const ByteRange span = {begin,
                              TurnEnd(text_, begin, end, JsonMember(messages_[i], "content"), &chat.ends_marked)};
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

  // Whether what message i says ends in its place: some templates write it elsewhere.
  absl::Status CheckContent(size_t i, ByteRange span) {
    for (const Marking& marking : Markings(messages_[i])) {
      if (!marking.is_content) continue;
      const absl::StatusOr<std::string> rendered = render_(With(i, marking.message), false);
      const std::optional<Around> around = rendered.ok() ? AroundMark(*rendered) : std::nullopt;
      if (!around.has_value()) continue;
      const size_t end = text_.size() - std::min(text_.size(), around->after.size());
      if (!absl::EndsWith(text_, around->after) || end <= span.begin || end > span.end)
        return Fail(i, "its text stands elsewhere");
    }
    return absl::OkStatus();
  }

  // Without this a template that ends every text in a generation prompt would have that learned.
  absl::Status CheckLast() {
    const absl::StatusOr<std::string> prompted = render_(messages_, true);
    if (prompted.ok() && *prompted != text_) return absl::OkStatus();
    const auto continued = [](Json messages) {
      messages.push_back({{"role", "user"}, {"content", "Go on."}});
      return messages;
    };
    const absl::StatusOr<std::string> rendered = render_(continued(messages_), false);
    if (rendered.ok() && absl::StartsWith(*rendered, text_)) return absl::OkStatus();
    const size_t last = messages_.size() - 1;
    for (const Marking& marking : Markings(messages_[last])) {
      const absl::StatusOr<std::string> here = render_(With(last, marking.message), false);
      const absl::StatusOr<std::string> there = render_(continued(With(last, marking.message)), false);
      if (!here.ok() || !there.ok()) continue;
      const std::optional<Around> in_here = AroundMark(*here), in_there = AroundMark(*there);
      if (in_here.has_value() && in_there.has_value() && absl::StartsWith(in_there->after, in_here->after))
        return absl::OkStatus();
    }
    return Fail(last, "the template does not heed add_generation_prompt");
  }

  // The messages with another one in place of message i.
  Json With(size_t i, const Json& message) const {
    Json messages = messages_;
    messages[i] = message;
    return messages;
  }

  absl::StatusOr<size_t> Begin(size_t i) {
    const absl::StatusOr<std::string> prompt = render_(FirstMessages(messages_, i), true);
    if (prompt.ok() && absl::StartsWith(text_, *prompt)) return prompt->size();
    if (i == 0)
      return Fail(
          i, prompt.ok() ? "the generation prompt is not what it begins with" : std::string(prompt.status().message()));
    // The end of the message before, then this one's header as far as the generation prompt goes.
    ASSIGN_OR_RETURN(const size_t header, MarkedEnd(i - 1));
    ASSIGN_OR_RETURN(const std::string before, render_(FirstMessages(messages_, i), false));
    if (!prompt.ok()) return prompt.status();
    if (!absl::StartsWith(*prompt, before)) return Fail(i, "a generation prompt changes what stands before it");
    const absl::string_view generation_prompt = absl::string_view(*prompt).substr(before.size());
    for (const Marking& marking : Markings(messages_[i])) {
      const absl::StatusOr<std::string> rendered = render_(With(i, marking.message), false);
      if (!rendered.ok()) continue;
      const std::optional<Around> around = AroundMark(*rendered);
      if (!around.has_value() || around->before.size() < header) continue;
      const absl::string_view written = around->before.substr(header);
      // Where nothing stands between, there is no header; where no prompt is given, the model writes it itself.
      const bool bare = written.empty() || generation_prompt.empty();
      const std::optional<size_t> common = bare ? size_t{0} : CommonTags(written, generation_prompt);
      if (!common.has_value() || (*common == 0 && !bare)) continue;
      const size_t begin = header + *common;
      if (CommonPrefix(text_, around->before) >= begin) return begin;
    }
    return Fail(i, "the template writes its header otherwise than the generation prompt");
  }

  absl::StatusOr<size_t> End(size_t i) {
    if (i + 1 == messages_.size()) {
      RETURN_IF_ERROR(CheckLast());
      return text_.size();
    }
    const absl::StatusOr<std::string> whole = render_(FirstMessages(messages_, i + 1), false);
    if (whole.ok() && absl::StartsWith(text_, *whole)) return whole->size();
    return MarkedEnd(i);
  }

  // The end of message i. `after`, what follows the mark in its place in the conversation, begins with the end of the
  // message; the same conversation cut off there shows how far that goes.
  absl::StatusOr<size_t> MarkedEnd(size_t i) {
    struct Place {
      size_t after;
      Json messages;
      bool has_all;  // no other part of the message follows
    };
    std::vector<Place> places;
    const bool calls = !JsonMember(messages_[i], "tool_calls").empty();
    for (const Marking& marking : Markings(messages_[i])) {
      const Json messages = With(i, marking.message);
      const absl::StatusOr<std::string> full = render_(messages, false);
      const std::optional<Around> around = full.ok() ? AroundMark(*full) : std::nullopt;
      if (!around.has_value() || !absl::EndsWith(text_, around->after)) continue;
      places.push_back({around->after.size(), FirstMessages(messages, i + 1), marking.is_argument || !calls});
    }
    // The last text of the message first.
    std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.after < b.after; });
    for (const Place& place : places) {
      const size_t at = text_.size() - place.after;
      const std::optional<size_t> size = EndSize(place.messages, absl::string_view(text_).substr(at), place.has_all);
      if (size.has_value() && at + *size >= text_.size() - places[0].after) return at + *size;
    }
    return Fail(i, "the template ends it otherwise when other messages follow");
  }

  // How much of `after`, what follows the mark in the last of `messages`, still belongs to that message. `has_all`: it
  // holds no other text of the message, so that what it shares with another rendering is the message's end.
  std::optional<size_t> EndSize(const Json& messages, absl::string_view after, bool has_all) {
    const absl::StatusOr<std::string> last = render_(messages, false), prompted = render_(messages, true);
    const std::optional<Around> in_last = last.ok() ? AroundMark(*last) : std::nullopt;
    if (in_last.has_value() && absl::StartsWith(after, in_last->after)) return in_last->after.size();
    // The last message may have an end of its own, which a generation prompt after it takes away.
    const std::optional<Around> in_prompted = prompted.ok() ? AroundMark(*prompted) : std::nullopt;
    if (in_prompted.has_value() && messages.size() > 1) {
      const Json earlier = FirstMessages(messages, messages.size() - 1);
      const absl::StatusOr<std::string> plain = render_(earlier, false), asking = render_(earlier, true);
      if (plain.ok() && asking.ok() && asking->size() > plain->size() && absl::StartsWith(*asking, *plain)) {
        absl::string_view end = in_prompted->after;
        if (absl::ConsumeSuffix(&end, asking->substr(plain->size())) && absl::StartsWith(after, end)) return end.size();
      }
    }
    if (!in_last.has_value() || !has_all || !prompted.ok() || *prompted == *last) return std::nullopt;
    const std::optional<size_t> common = CommonTags(after, in_last->after);
    if (!common.has_value() || absl::StripAsciiWhitespace(after.substr(0, *common)).empty()) return std::nullopt;
    return common;
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
  const std::string* text_said = JsonText(content);
  const absl::string_view said = text_said == nullptr ? "" : absl::StripTrailingAsciiWhitespace(*text_said);
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
