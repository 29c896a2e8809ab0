// data/chat/sample_tokenizer.h
// Samples to fine-tune on as tokens, with the ones that carry loss.
#ifndef TRIREME_DATA_CHAT_SAMPLE_TOKENIZER_H_
#define TRIREME_DATA_CHAT_SAMPLE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "configs/run_config.pb.h"
#include "data/chat/chat_template.h"
#include "data/chat/conversation.h"
#include "data/chat/masked_tokens.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/status.h"

namespace trireme {

struct SampleTokenizerOptions {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;  // absent: conversations are refused
  absl::Status no_template_reason;            // why, if absent
  std::vector<int64_t> prefix_ids;            // what begins a text that no template wrote
  int32_t end_id = -1;                        // what ends it; -1: there is none, such samples are refused
  ConversationData::TrainOn train_on = ConversationData::ASSISTANT;
};

// Thread-safe.
class SampleTokenizer {
 public:
  explicit SampleTokenizer(SampleTokenizerOptions options) : options_(std::move(options)) {}

  // Conversations: the template's text (nothing is added to it), learned is what the assistant says, up to the end of
  // its turn. Prompt and completion: the completion and the end; text: all but the first token, and the end. Under
  // train_on: ALL every token is learned. Errors (kData) begin with the sample's place.
  absl::StatusOr<MaskedTokens> Encode(const ConversationSample& sample) const;

  const Tokenizer& tokenizer() const { return *options_.tokenizer; }
  int32_t end_id() const { return options_.end_id; }

 private:
  absl::StatusOr<MaskedTokens> EncodeChat(const ConversationSample& sample) const;
  absl::StatusOr<MaskedTokens> EncodeText(const ConversationSample& sample) const;

  SampleTokenizerOptions options_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_SAMPLE_TOKENIZER_H_
