#include "data/tokenizer/bpe_cache.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace trireme {
namespace {

constexpr size_t kNumSlots = size_t{1} << 16;
constexpr size_t kMaxKeyLength = 256;  // longer pieces hardly ever repeat
constexpr size_t kMaxKeyBytes = size_t{1} << 20;

}  // namespace

BpeCache::BpeCache() : slots_(kNumSlots) {}

void BpeCache::Clear() {
  std::fill(slots_.begin(), slots_.end(), Slot{});
  num_used_ = 0;
  keys_.clear();
  ids_.clear();
}

void BpeCache::Encode(const BpeModel& model, absl::string_view piece, std::vector<int32_t>* ids) {
  if (piece.size() > kMaxKeyLength) {
    model.Encode(piece, ids);
    return;
  }
  const uint64_t hash = XXH3_64bits(piece.data(), piece.size());
  size_t index = hash & (kNumSlots - 1);
  for (; slots_[index].key_length != 0; index = (index + 1) & (kNumSlots - 1)) {
    const Slot& slot = slots_[index];
    if (slot.hash != hash || slot.key_length != piece.size()) continue;
    if (std::memcmp(keys_.data() + slot.key_offset, piece.data(), piece.size()) != 0) continue;
    const int32_t* found = slot.num_ids <= kInlineIds ? slot.ids : ids_.data() + slot.ids[0];
    ids->insert(ids->end(), found, found + slot.num_ids);
    return;
  }
  const size_t before = ids->size();
  model.Encode(piece, ids);
  const size_t num_ids = ids->size() - before;
  if (num_used_ * 2 >= kNumSlots || keys_.size() + piece.size() > kMaxKeyBytes) {
    Clear();
    index = hash & (kNumSlots - 1);
  }
  Slot& slot = slots_[index];
  slot.hash = hash;
  slot.key_offset = static_cast<uint32_t>(keys_.size());
  slot.key_length = static_cast<uint16_t>(piece.size());
  slot.num_ids = static_cast<uint16_t>(num_ids);
  keys_.append(piece.data(), piece.size());
  if (num_ids <= kInlineIds) {
    std::copy(ids->begin() + before, ids->end(), slot.ids);
  } else {
    slot.ids[0] = static_cast<int32_t>(ids_.size());
    ids_.insert(ids_.end(), ids->begin() + before, ids->end());
  }
  ++num_used_;
}

}  // namespace trireme
