// data/corpus/unigram_counts.h
// How often each token occurs.
#ifndef TRIREME_DATA_CORPUS_UNIGRAM_COUNTS_H_
#define TRIREME_DATA_CORPUS_UNIGRAM_COUNTS_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

class UnigramCounts {
 public:
  explicit UnigramCounts(int64_t vocab_size) : counts_(vocab_size) {}

  // Every id must be in [0, vocab_size).
  template <typename Id>
  void Add(const Id* ids, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      TRIREME_CHECK(ids[i] >= 0 && ids[i] < static_cast<int64_t>(counts_.size()), "token ", ids[i], " of ",
                    counts_.size());
      ++counts_[ids[i]];
    }
    total_ += count;
  }

  // In nat per token; 0 without tokens.
  double Entropy() const {
    if (total_ == 0) return 0;
    double sum = 0;
    for (const int64_t count : counts_) {
      if (count > 0) sum += static_cast<double>(count) * std::log(static_cast<double>(count));
    }
    return std::log(static_cast<double>(total_)) - sum / static_cast<double>(total_);
  }

 private:
  std::vector<int64_t> counts_;
  int64_t total_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_UNIGRAM_COUNTS_H_
