// data/tokenizer/bpe_cache.h
// Remembers the ids of pieces already encoded.
#ifndef TRIREME_DATA_TOKENIZER_BPE_CACHE_H_
#define TRIREME_DATA_TOKENIZER_BPE_CACHE_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer/bpe_model.h"

namespace trireme {

// Bounded (a few megabytes): when full it forgets everything. Not thread-safe.
class BpeCache {
 public:
  BpeCache();

  // Appends the ids of `piece`, as model.Encode() does. Always pass the same model.
  void Encode(const BpeModel& model, absl::string_view piece, std::vector<int32_t>* ids);

 private:
  static constexpr int kInlineIds = 4;
  struct Slot {
    uint64_t hash;
    uint32_t key_offset;  // in keys_
    uint16_t key_length;  // 0: free
    uint16_t num_ids;
    int32_t ids[kInlineIds];  // when there are more: ids[0] is their offset in ids_
  };

  void Clear();

  std::vector<Slot> slots_;  // open addressing, at most half full
  size_t num_used_ = 0;
  std::string keys_;
  std::vector<int32_t> ids_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_CACHE_H_
