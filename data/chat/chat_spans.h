// data/chat/chat_spans.h
// Where the assistant speaks in a rendered conversation.
#ifndef TRIREME_DATA_CHAT_CHAT_SPANS_H_
#define TRIREME_DATA_CHAT_CHAT_SPANS_H_

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "data/chat/chat_template.h"

namespace trireme {

// Renders messages, with or without a generation prompt.
using RenderMessages =
    std::function<absl::StatusOr<std::string>(const nlohmann::ordered_json& messages, bool add_generation_prompt)>;

// The rendering of `messages` and its spans, found by rendering again with fewer or other messages. Turn i of the
// assistant begins where the conversation before it, rendered with a generation prompt, ends, and ends where the
// conversation up to it, rendered as a whole, does: if those are beginnings of the full text. Templates that write an
// earlier message otherwise when others follow (they drop its reasoning, or prompt for new reasoning) break that; there
// a message's place is found by putting a mark in place of its text, and the turn's header by comparing what stands
// between the previous message and the mark with the generation prompt. What remains ambiguous is an error (kData)
// naming the message, counted from 1.
absl::StatusOr<RenderedChat> FindAssistantSpans(const nlohmann::ordered_json& messages, const std::string& name,
                                                const RenderMessages& render);

// The end of what stands in text[begin, end) without the white space after the mark of a turn's end; `content` is what
// the assistant said, null if it is no text. *marked becomes false if nothing but white space follows the content.
size_t TurnEnd(absl::string_view text, size_t begin, size_t end, const nlohmann::ordered_json& content, bool* marked);

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_CHAT_SPANS_H_
