#include "data/chat/content_hash.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "launch/base/file.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxParsedDepth = 64;  // Recursive code walks what was parsed.

// Arguments that are written as text; the text itself where it is no JSON.
nlohmann::json Parsed(const std::string& text) {
  JsonLimits limits;
  limits.max_depth = kMaxParsedDepth;
  JsonProblem problem;
  std::optional<nlohmann::json> parsed = ParseJson<nlohmann::json>(text, limits, &problem);
  return parsed.has_value() ? *std::move(parsed) : nlohmann::json(text);
}

// The words and calls of a conversation, by which its copies are known. Numbers of calls, names of data sets and the
// like differ between copies, and so do spellings of arguments.
nlohmann::json ContentOf(const Conversation& conversation) {
  using Sorted = nlohmann::json;
  Sorted content = Sorted::array();
  for (const Json& message : conversation.messages) {
    Sorted said = Sorted::array();
    said.push_back(Sorted(JsonMember(message, "role")));
    said.push_back(message.contains("content") ? Sorted(JsonMember(message, "content")) : Sorted(""));
    for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
      if (!message.contains(name)) continue;
      said.push_back(Sorted(JsonMember(message, name)));
      break;
    }
    for (const Json& call : JsonList(JsonMember(message, "tool_calls"))) {
      const Sorted function(call.is_object() && call.contains("function") ? JsonMember(call, "function") : call);
      if (!function.is_object()) {
        said.push_back(function);
        continue;
      }
      Sorted arguments = JsonMember(function, "arguments");
      if (const std::string* text = JsonText(arguments)) arguments = Parsed(*text);
      said.push_back(JsonMember(function, "name"));
      said.push_back(std::move(arguments));
    }
    content.push_back(std::move(said));
  }
  return content;
}

}  // namespace

std::string ContentHash(const ConversationSample& sample) {
  const std::string content =
      sample.is_chat() ? DumpJson(ContentOf(sample.conversation)) : sample.prompt + sample.completion;
  return HashBytes(content.data(), content.size());
}

}  // namespace trireme
