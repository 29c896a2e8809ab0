// models/source/model_text.h
// What turns text into a model's tokens: its tokenizer, its chat template, and what begins and ends a text.
#ifndef TRIREME_MODELS_SOURCE_MODEL_TEXT_H_
#define TRIREME_MODELS_SOURCE_MODEL_TEXT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/status.h"

namespace trireme {

struct ModelText {
  std::string origin;  // the folder or GGUF file
  std::shared_ptr<const Tokenizer> tokenizer;
  absl::StatusOr<ChatTemplate> chat_template;  // or why there is none
  std::vector<int64_t> prefix_ids;             // what the tokenizer puts before a text
  int32_t end_id = -1;                         // eos_token; -1: the model names none
  std::string given_template;                  // the text of chat_template where one was given; "": the model's own
};

// Opens what a model directory, ORG/NAME in the local cache, or a GGUF file says about text. chat_template: instead of
// the model's own; a file, or Jinja itself, which is told by its braces; "": the model's own. kOneDay: templates that
// ask for the date are told one and the same, or the tokens of a run would change overnight. Errors are kData and
// kConfig: no tokenizer, or a chat_template that cannot be read; a template of the model's own that is refused is an
// error of chat_template only.
enum class TemplateDate { kOneDay, kToday };
absl::StatusOr<ModelText> OpenModelText(const std::string& model, const std::string& chat_template, TemplateDate date);

// The id of the token with a role ("eos_token"), if there is one and the tokenizer knows it.
std::optional<int64_t> SpecialTokenId(const SpecialTokens& tokens, const char* role, const Tokenizer& tokenizer);

}  // namespace trireme

#endif  // TRIREME_MODELS_SOURCE_MODEL_TEXT_H_
