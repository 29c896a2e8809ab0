// data/tokenizer/bpe_merge_finder.h
// The training loop of BPE: which pair to merge next, kept up to date as merges change the words.
#ifndef TRIREME_DATA_TOKENIZER_BPE_MERGE_FINDER_H_
#define TRIREME_DATA_TOKENIZER_BPE_MERGE_FINDER_H_

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

class BpeMergeFinder {
 public:
  // A pair of token ids.
  using Pair = std::pair<int32_t, int32_t>;

  // `words` as token ids in one array: word w is ids[begins[w]..begins[w + 1]), seen counts[w] times.
  BpeMergeFinder(std::vector<int32_t> ids, std::vector<int64_t> begins, std::vector<int64_t> counts);

  // The pair to merge next; false when none is seen at least `min_frequency` times. Call Merge() with it before the
  // next Find().
  bool Find(int64_t min_frequency, Pair* pair);

  // Replaces the found pair by `result` in the words it was noted in.
  void Merge(int32_t result);

 private:
  struct Candidate {
    int64_t count;  // when it was pushed; may be stale
    Pair pair;
    std::vector<uint32_t> words;  // that hold it, ascending, each once
  };
  // For std heaps: the largest count first, then the smallest pair.
  static bool Less(const Candidate& a, const Candidate& b) {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }

  void Note(const Pair& pair, int64_t change, uint32_t word);
  void MergeInWord(uint32_t word, int32_t result);
  void PushNoted();

  std::vector<int32_t> ids_;
  std::vector<int64_t> begins_;
  std::vector<int32_t> lengths_;  // of each word now; merging shortens it in place
  std::vector<int64_t> counts_;
  absl::flat_hash_map<Pair, int64_t> pair_counts_;
  absl::flat_hash_map<Pair, std::vector<uint32_t>> noted_;  // pairs that appeared since the last push, and where
  std::vector<Candidate> heap_;
  Candidate found_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_MERGE_FINDER_H_
