// data/sampling/mixture.h
// Which of several sources sample i comes from, and the how-manieth of that source it is.
#ifndef TRIREME_DATA_SAMPLING_MIXTURE_H_
#define TRIREME_DATA_SAMPLING_MIXTURE_H_

#include <cstdint>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// Block b ends when every source has given floor((b + 1) * 1024 * share) samples in all: quotas are exact at the end of
// every block, and so in the long run, at any share. (Blocks hold 1024 samples, give or take one per source.) Inside a
// block the order is pseudo-random. Needs no state: everything follows from i.
class Mixture {
 public:
  struct Draw {
    int source;
    int64_t index;  // samples of this source before this one
  };

  // Weights must be positive and finite; shares are their parts of the sum. `seed` orders the samples inside the
  // blocks; without `shuffle` the sources follow one another in each block.
  static absl::StatusOr<Mixture> Create(const std::vector<double>& weights, uint64_t seed, bool shuffle);

  Draw At(int64_t sample) const;  // sample >= 0

 private:
  Mixture(std::vector<int64_t> parts, int64_t total, uint64_t seed, bool shuffle)
      : parts_(std::move(parts)), total_(total), seed_(seed), shuffle_(shuffle) {}
  int64_t DrawnBefore(int source, int64_t block) const;
  int64_t BlockBegin(int64_t block) const;

  std::vector<int64_t> parts_;  // share of source s is parts_[s] / total_
  int64_t total_;
  uint64_t seed_;
  bool shuffle_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_MIXTURE_H_
