#include "data/tokenizer/bpe_model.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

constexpr size_t kShort = 64;  // bytes; up to here scanning for the best pair beats a heap
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeModel::BpeModel(Alphabet alphabet, const std::vector<Merge>& merges,
                   absl::flat_hash_map<std::string, int32_t> whole_words)
    : alphabet_(std::move(alphabet)),
      is_plain_(alphabet_.character_ids.empty() &&
                *std::min_element(alphabet_.byte_ids.begin(), alphabet_.byte_ids.end()) >= 0),
      whole_words_(std::move(whole_words)) {
  int bits = 4;
  while ((size_t{1} << bits) < merges.size() * 2) ++bits;
  table_.resize(size_t{1} << bits);
  shift_ = 64 - bits;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    auto* entry = const_cast<Entry*>(Find(merges[rank].left, merges[rank].right));
    entry->pair = PairKey(merges[rank].left, merges[rank].right);
    entry->rank = merges[rank].rank >= 0 ? merges[rank].rank : static_cast<int32_t>(rank);
    entry->result = merges[rank].result;
  }
}

// The pair's entry, or the free one where it would be.
const BpeModel::Entry* BpeModel::Find(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  size_t slot = (key * 0x9E3779B97F4A7C15u) >> shift_;
  while (table_[slot].pair != key && table_[slot].pair != kNoPair) slot = (slot + 1) & (table_.size() - 1);
  return &table_[slot];
}

size_t BpeModel::FirstIds(absl::string_view piece, int32_t* ids) const {
  int32_t* out = ids;
  if (is_plain_) {
    for (const char byte : piece) *out++ = alphabet_.byte_ids[static_cast<uint8_t>(byte)];
    return out - ids;
  }
  const char* p = piece.data();
  const char* end = p + piece.size();
  bool after_unknown = false;
  while (p < end) {
    const char* next = p + 1;
    if (!alphabet_.character_ids.empty()) {
      const auto found = alphabet_.character_ids.find(DecodeUtf8(p, &next));
      if (found != alphabet_.character_ids.end()) {
        *out++ = found->second;
        p = next;
        after_unknown = false;
        continue;
      }
    }
    for (; p < next; ++p) {
      const int32_t id = alphabet_.byte_ids[static_cast<uint8_t>(*p)];
      if (id >= 0) {
        *out++ = id;
      } else if (alphabet_.unknown_id >= 0 && !(alphabet_.fuse_unknown && after_unknown)) {
        *out++ = alphabet_.unknown_id;
      }
      after_unknown = id < 0;
    }
  }
  return out - ids;
}

void BpeModel::Encode(absl::string_view piece, std::vector<int32_t>* ids) const {
  if (!whole_words_.empty()) {
    const auto found = whole_words_.find(piece);
    if (found != whole_words_.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  if (piece.size() <= kShort) {
    EncodeShort(piece, ids);
  } else {
    EncodeLong(piece, ids);
  }
}

void BpeModel::EncodeShort(absl::string_view piece, std::vector<int32_t>* ids) const {
  int32_t symbols[kShort];
  int32_t ranks[kShort];    // of the pair (i, i + 1); kNoRank when it does not merge
  int32_t results[kShort];  // what that pair becomes
  auto count = static_cast<int>(FirstIds(piece, symbols));
  auto look_up = [&](int i) {
    ranks[i] = kNoRank;
    if (i < 0 || i + 1 >= count) return;
    const Entry* entry = Find(symbols[i], symbols[i + 1]);
    if (entry->pair == kNoPair) return;
    ranks[i] = entry->rank;
    results[i] = entry->result;
  };
  for (int i = 0; i < count; ++i) look_up(i);
  while (count > 1) {
    int best = 0;
    for (int i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = results[best];
    const int moved = count - best - 2;
    std::memmove(symbols + best + 1, symbols + best + 2, moved * sizeof(int32_t));
    std::memmove(ranks + best + 1, ranks + best + 2, moved * sizeof(int32_t));
    std::memmove(results + best + 1, results + best + 2, moved * sizeof(int32_t));
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids->insert(ids->end(), symbols, symbols + count);
}

void BpeModel::EncodeLong(absl::string_view piece, std::vector<int32_t>* ids) const {
  struct Symbol {
    int32_t id;
    int32_t length;  // in first ids; 0 once joined to its left neighbour
    int64_t previous;
    int64_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t result;
    int64_t left;
    int64_t length;  // of both symbols: tells a candidate whose symbols have changed since
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::vector<int32_t> first_ids(piece.size());
  const auto size = static_cast<int64_t>(FirstIds(piece, first_ids.data()));
  std::vector<Symbol> symbols(size);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  auto consider = [&](int64_t left) {
    if (left < 0 || symbols[left].next >= size) return;
    const Symbol& right = symbols[symbols[left].next];
    const Entry* entry = Find(symbols[left].id, right.id);
    if (entry->pair == kNoPair) return;
    queue.push({entry->rank, entry->result, left, int64_t{symbols[left].length} + right.length});
  };
  for (int64_t i = 0; i < size; ++i) symbols[i] = {first_ids[i], 1, i - 1, i + 1};
  for (int64_t i = 0; i + 1 < size; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.left];
    if (left.length == 0 || left.next >= size) continue;
    Symbol& right = symbols[left.next];
    if (int64_t{left.length} + right.length != top.length) continue;
    left.id = top.result;
    left.length += right.length;
    right.length = 0;
    left.next = right.next;
    if (left.next < size) symbols[left.next].previous = top.left;
    consider(left.previous);
    consider(top.left);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.length != 0) ids->push_back(symbol.id);
  }
}

}  // namespace trireme
