// data/chat/masked_tokens.h
// Which tokens of a text lie in given parts of it.
#ifndef TRIREME_DATA_CHAT_MASKED_TOKENS_H_
#define TRIREME_DATA_CHAT_MASKED_TOKENS_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/status.h"

namespace trireme {

struct MaskedTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> learned;  // 1: the token carries loss where it is the target
};

// The tokens of `text`, as Tokenizer::Encode() gives them; those with a byte in one of `ranges` (ascending, within
// `text`) are learned, and so is a special token right behind a range that does not end in one (the end of a turn).
// By position, never by id. Tokens are found in the text by their bytes: where that fails (an unknown token, a
// normalizer that rewrites the text) the error (kData) says where; nothing is guessed.
absl::StatusOr<MaskedTokens> EncodeMasked(const Tokenizer& tokenizer, absl::string_view text,
                                          const std::vector<ByteRange>& ranges);

// The token that ends the learned tokens before `end`: the last of them that is not white space (templates write line
// breaks behind the end of a turn), if it is a special one or `end_id`. -1: nothing among them says where to stop.
int32_t LearnedEnd(const Tokenizer& tokenizer, const MaskedTokens& tokens, int64_t end, int32_t end_id);

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_MASKED_TOKENS_H_
