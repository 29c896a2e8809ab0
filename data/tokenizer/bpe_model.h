// data/tokenizer/bpe_model.h
// Byte-pair encoding of one piece of text.
#ifndef TRIREME_DATA_TOKENIZER_BPE_MODEL_H_
#define TRIREME_DATA_TOKENIZER_BPE_MODEL_H_

#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// Immutable, so thread-safe.
class BpeModel {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t result;
    int32_t rank = -1;  // lower ones first; -1: its place in the list
  };

  // What merging starts from.
  struct Alphabet {
    std::array<int32_t, 256> byte_ids;                     // the token of each byte, -1 where there is none
    absl::flat_hash_map<uint32_t, int32_t> character_ids;  // characters with a token, which comes before their bytes'
    int32_t unknown_id = -1;    // stands for a byte without token; -1: such bytes are left out
    bool fuse_unknown = false;  // one unknown_id for a run of them
  };

  // Where a pair is listed twice in `merges`, the later one counts, as in the reference. `whole_words`:
  // pieces that are tokens as they are, whatever the merges say (the file's ignore_merges); empty otherwise.
  BpeModel(Alphabet alphabet, const std::vector<Merge>& merges, absl::flat_hash_map<std::string, int32_t> whole_words);

  // `piece` must be valid UTF-8 when the alphabet has characters. Appends the ids of `piece`. Joins the pair of lowest
  // rank, the leftmost among equals, until none is left.
  void Encode(absl::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Entry {
    uint64_t pair = kNoPair;
    int32_t rank = 0;
    int32_t result = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const Entry* Find(int32_t left, int32_t right) const;
  // Writes what `piece` begins as, at most one id a byte, to `ids`; returns how many.
  size_t FirstIds(absl::string_view piece, int32_t* ids) const;
  void EncodeShort(absl::string_view piece, std::vector<int32_t>* ids) const;
  void EncodeLong(absl::string_view piece, std::vector<int32_t>* ids) const;

  Alphabet alphabet_;
  bool is_plain_;             // every byte has a token, and there are no characters
  std::vector<Entry> table_;  // open addressing, at most half full; size a power of two
  int shift_ = 0;
  absl::flat_hash_map<std::string, int32_t> whole_words_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_MODEL_H_
