// models/source/prompt.h
// Text as a model expects it, and text back from tokens as they come.
#ifndef TRIREME_MODELS_SOURCE_PROMPT_H_
#define TRIREME_MODELS_SOURCE_PROMPT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/tokenizer/tokenizer.h"

namespace trireme {

// Ids that the tokenizer's post_processor puts before a text (a beginning-of-sequence token); empty for most. Errors
// are kData: it is of a kind that is not known.
absl::StatusOr<std::vector<int64_t>> PrefixIds(const std::string& tokenizer_folder, const Tokenizer& tokenizer);
// PrefixIds() from the contents of a tokenizer.json; `name` is for errors.
absl::StatusOr<std::vector<int64_t>> PrefixIdsOf(const std::string& tokenizer_json, const std::string& name,
                                                 const Tokenizer& tokenizer);

// What the model's own chat template makes of one user message, after a system message where one is given, with the
// header of the answer. Errors are kData: there is no template, or it refuses.
absl::StatusOr<std::string> ChatPrompt(const absl::StatusOr<ChatTemplate>& chat_template,
                                       const std::optional<std::string>& system, const std::string& user);

// Text of tokens as they come, in whole UTF-8 characters.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The characters that are complete with this token.
  std::string Push(int64_t id);
  // What an unfinished character at the end leaves: U+FFFD, or nothing.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t given_bytes_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_SOURCE_PROMPT_H_
