// The lines of a JSONL file of samples.
#include "data/chat/conversation.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  static MemoryFile file;
  file.Write(input);
  absl::StatusOr<ConversationReader> reader = ConversationReader::Open({file.path()});
  if (!reader.ok()) return false;
  ConversationSample sample;
  size_t samples = 0;
  while (true) {
    const absl::StatusOr<bool> found = reader->Next(&sample);
    if (!found.ok()) return false;
    if (!*found) return samples > 0;
    ++samples;
    size_t assistant = 0;
    for (const auto& message : sample.conversation.messages) assistant += message.at("role") == "assistant";
    TRIREME_CHECK(assistant == sample.learned.size(), "sample ", samples);
    TRIREME_CHECK(sample.prompt_messages <= sample.conversation.messages.size());
    TRIREME_CHECK(sample.is_chat() || sample.conversation.messages.empty());
    sample.conversation.messages.dump();  // Valid UTF-8, not too deep.
  }
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": null, "tool_calls": [{"f": {"x": [1, 2.5, null]}}]}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "\u00e9\ud83d\ude00", "weight": 0}], "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"t": true}}
{"messages": []}
)",
      R"({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}

{"conversations": [{"role": "user", "content": "q"}]})",
      R"({"instruction": "i", "input": "x", "output": "o", "system": "s"}
{"instruction": "i", "input": "", "output": "o", "history": []})",
      R"({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]})",
      "{\"prompt\": \"p\", \"completion\": \"c\"}\r\n{\"prompt\": \"p\", \"completion\": \"\"}",
      "{\"text\": \"t\"}\n{\"text\": \"\"}\n",
      "{\"text\": " + std::string(70, '[') + std::string(70, ']') + "}",
  };
}

}  // namespace trireme
