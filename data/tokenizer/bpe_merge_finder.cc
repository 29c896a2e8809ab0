#include "data/tokenizer/bpe_merge_finder.h"

#include <algorithm>

namespace trireme {

BpeMergeFinder::BpeMergeFinder(std::vector<int32_t> ids, std::vector<int64_t> begins, std::vector<int64_t> counts)
    : ids_(std::move(ids)), begins_(std::move(begins)), counts_(std::move(counts)) {
  lengths_.reserve(counts_.size());
  for (uint32_t word = 0; word < counts_.size(); ++word) {
    lengths_.push_back(static_cast<int32_t>(begins_[word + 1] - begins_[word]));
    for (int64_t i = begins_[word]; i + 1 < begins_[word + 1]; ++i) Note({ids_[i], ids_[i + 1]}, counts_[word], word);
  }
  PushNoted();
}

void BpeMergeFinder::Note(const Pair& pair, int64_t change, uint32_t word) {
  pair_counts_[pair] += change;
  if (change <= 0) return;
  std::vector<uint32_t>& words = noted_[pair];
  if (words.empty() || words.back() != word) words.push_back(word);
}

void BpeMergeFinder::PushNoted() {
  for (auto& [pair, words] : noted_) {
    const int64_t count = pair_counts_[pair];
    if (count <= 0) continue;
    heap_.push_back({count, pair, std::move(words)});
    std::push_heap(heap_.begin(), heap_.end(), Less);
  }
  noted_.clear();
}

// A pair whose count rose was pushed again, so a candidate on top whose count is up to date is the best of all.
bool BpeMergeFinder::Find(int64_t min_frequency, Pair* pair) {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), Less);
    Candidate& top = heap_.back();
    const int64_t count = pair_counts_[top.pair];
    if (count == top.count) {
      found_ = std::move(top);
      heap_.pop_back();
      *pair = found_.pair;
      return count >= std::max<int64_t>(1, min_frequency);
    }
    top.count = count;
    std::push_heap(heap_.begin(), heap_.end(), Less);
  }
  return false;
}

void BpeMergeFinder::Merge(int32_t result) {
  for (const uint32_t word : found_.words) MergeInWord(word, result);
  PushNoted();
}

// Counts change one occurrence at a time, from left to right, as in the `tokenizers` package: in runs like "aaaa" the
// order matters.
void BpeMergeFinder::MergeInWord(uint32_t word, int32_t result) {
  const auto [left, right] = found_.pair;
  int32_t* ids = ids_.data() + begins_[word];
  const int32_t length = lengths_[word];
  const int64_t count = counts_[word];
  int32_t out = 0;
  for (int32_t in = 0; in < length; ++out) {
    if (ids[in] != left || in + 1 >= length || ids[in + 1] != right) {
      ids[out] = ids[in++];
      continue;
    }
    if (out > 0) {
      Note({ids[out - 1], left}, -count, word);
      Note({ids[out - 1], result}, count, word);
    }
    in += 2;
    if (in < length) {
      Note({right, ids[in]}, -count, word);
      Note({result, ids[in]}, count, word);
    }
    ids[out] = result;
  }
  lengths_[word] = out;
}

}  // namespace trireme
