// data/chat/conversation.h
// Samples to fine-tune on, as JSON lines hold them.
#ifndef TRIREME_DATA_CHAT_CONVERSATION_H_
#define TRIREME_DATA_CHAT_CONVERSATION_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/text/line_reader.h"
#include "launch/base/status.h"

namespace trireme {

// How a line says what it holds. One file holds one form.
enum class SampleForm {
  kMessages,        // {"messages": [{"role", "content"}, ...]}
  kShareGpt,        // {"conversations": [{"from", "value"}, ...]}
  kAlpaca,          // {"instruction", "input", "output"}
  kPromptMessages,  // {"prompt": [...], "completion": [...]}, both lists of messages
  kPromptText,      // {"prompt", "completion"}, both strings
  kText,            // {"text"}
};
const char* SampleFormName(SampleForm form);

// Either a conversation for the model's chat template, or text that is taken as it stands.
struct ConversationSample {
  SampleForm form = SampleForm::kText;
  std::string place;  // file:line, for messages
  // content_hash is of what is said (who, what, reasoning and calls of tools): it is the same however the line is
  // written and whatever else stands in it. line_hash is of the line's bytes.
  std::string content_hash, line_hash;

  // Set for the first four forms, in the terms of the first. Contents are strings: parts of type "text" are joined.
  Conversation conversation;
  size_t prompt_messages = 0;  // messages that are given, whoever speaks in them
  // For each message of the assistant: false where it carries no loss ("weight": 0).
  std::vector<bool> learned;

  // Set for the last two forms. Without a prompt all of the completion is learned.
  std::string prompt, completion;

  // Nothing is in it: no message, or no text.
  bool empty() const { return conversation.messages.empty() && completion.empty(); }
  bool is_chat() const { return form != SampleForm::kPromptText && form != SampleForm::kText; }
};

// Whether `path` is named as files of samples are: .jsonl, .ndjson or .json, perhaps with .gz or .zst behind it.
bool LooksLikeSamples(absl::string_view path);

// What one line holds. Errors are kData and begin with `place`: broken JSON, no known form, a message without role or
// content, an unknown role, contents that are not text.
absl::StatusOr<ConversationSample> ParseConversation(absl::string_view line, const std::string& place);

// The samples of several files, one after another. Empty lines are passed over. Not thread-safe.
class ConversationReader {
 public:
  // Files may be compressed with gzip or zstd. Every path must be a file.
  static absl::StatusOr<ConversationReader> Open(std::vector<std::string> paths);

  // Replaces `*sample`; false at the end. Errors name file and line; a file of two forms is one that names both lines.
  absl::StatusOr<bool> Next(ConversationSample* sample);

  int64_t bytes_done() const { return bytes_of_closed_files_ + (reader_ ? reader_->bytes_read() : 0); }
  int64_t bytes_total() const { return bytes_total_; }

 private:
  std::vector<std::string> paths_;
  size_t next_path_ = 0;
  std::optional<LineReader> reader_;  // of the file being read
  std::optional<SampleForm> form_;    // of that file, once a sample was seen
  int64_t form_line_ = 0;             // where
  int64_t bytes_of_closed_files_ = 0, bytes_total_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_CONVERSATION_H_
