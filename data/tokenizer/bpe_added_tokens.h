// data/tokenizer/bpe_added_tokens.h
// Tokens that are found in the text as they stand, before anything is split.
#ifndef TRIREME_DATA_TOKENIZER_BPE_ADDED_TOKENS_H_
#define TRIREME_DATA_TOKENIZER_BPE_ADDED_TOKENS_H_

#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trireme {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool lstrip = false;      // takes the white space before it
  bool rstrip = false;      // takes the white space after it
  bool normalized = false;  // looked for in the normalized text, after the others
  bool special = false;
};

// Finds tokens from left to right, the longest at each place, without overlap. Immutable.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Calls `on_token(id)` and `on_text(text)` in order for all of `text`, valid UTF-8; no empty texts.
  void Split(absl::string_view text, const std::function<void(absl::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

 private:
  const AddedToken* LongestAt(absl::string_view rest) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<absl::string_view, int> index_;      // content to position in tokens_
  std::array<std::vector<size_t>, 256> lengths_by_first_;  // longest first, each once
  std::array<bool, 256> is_first_ = {};
};

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_ADDED_TOKENS_H_
