#include "data/chat/content_hash.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "launch/base/file.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;  // Recursive code walks what was parsed.

// Arguments that are written as text; the text itself where it is no JSON.
nlohmann::json Parsed(const std::string& text) {
  bool too_deep = false;
  const nlohmann::json::parser_callback_t check = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  nlohmann::json parsed = nlohmann::json::parse(text, check, /*allow_exceptions=*/false);
  return too_deep || parsed.is_discarded() ? nlohmann::json(text) : parsed;
}

// The words and calls of a conversation, by which its copies are known. Numbers of calls, names of data sets and the
// like differ between copies, and so do spellings of arguments.
nlohmann::json ContentOf(const Conversation& conversation) {
  using Sorted = nlohmann::json;
  Sorted content = Sorted::array();
  for (const Json& message : conversation.messages) {
    Sorted said = Sorted::array();
    said.push_back(Sorted(message.value("role", Json())));
    said.push_back(Sorted(message.value("content", Json(""))));
    for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
      if (!message.contains(name)) continue;
      said.push_back(Sorted(message[name]));
      break;
    }
    for (const Json& call : message.value("tool_calls", Json::array())) {
      const Sorted function(call.is_object() && call.contains("function") ? call["function"] : call);
      if (!function.is_object()) {
        said.push_back(function);
        continue;
      }
      Sorted arguments = function.value("arguments", Sorted());
      if (arguments.is_string()) arguments = Parsed(arguments.get<std::string>());
      said.push_back(function.value("name", Sorted()));
      said.push_back(std::move(arguments));
    }
    content.push_back(std::move(said));
  }
  return content;
}

}  // namespace

std::string ContentHash(const ConversationSample& sample) {
  const std::string content = sample.is_chat()
                                  ? ContentOf(sample.conversation).dump(-1, ' ', false, Json::error_handler_t::replace)
                                  : sample.prompt + sample.completion;
  return HashBytes(content.data(), content.size());
}

}  // namespace trireme
