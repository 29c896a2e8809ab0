// data/tokenizer/bpe_decoder.h
// From token strings back to text: "decoder" of a tokenizer.json.
#ifndef TRIREME_DATA_TOKENIZER_BPE_DECODER_H_
#define TRIREME_DATA_TOKENIZER_BPE_DECODER_H_

#include <absl/strings/string_view.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// Whether `token` spells a byte as "<0x0A>"; `*byte` is set then.
bool ParseByteToken(absl::string_view token, char* byte);
// That spelling, as vocabularies have it.
std::string ByteToken(int byte);

// Thread-safe.
class BpeDecoder {
 public:
  // From ByteLevel, or a Sequence of Replace (literal), ByteFallback, Fuse and Strip of a leading space, in this order.
  static absl::StatusOr<BpeDecoder> FromJson(const nlohmann::json& json);

  // The decoder of SentencePiece's model files, which say themselves which bytes a token stands for.
  static BpeDecoder SentencePiece(bool strips_leading_space);

  // The bytes of one token, wherever it stands.
  std::string Bytes(absl::string_view token) const;

  bool byte_level() const { return byte_level_; }
  bool strips_leading_space() const { return strips_leading_space_; }  // of the whole text

 private:
  absl::Status Add(const nlohmann::json& json);

  bool byte_level_ = false;
  std::vector<std::pair<std::string, std::string>> replacements_;
  bool byte_fallback_ = false;
  bool fuse_ = false;
  bool strips_leading_space_ = false;
};

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_DECODER_H_
