// data/sampling/sampler.h
// Which tokens sample i holds: a pure function of (corpora, seed, i), the same on every rank and after every restart.
#ifndef TRIREME_DATA_SAMPLING_SAMPLER_H_
#define TRIREME_DATA_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"
#include "launch/base/status.h"

namespace trireme {

// Targets with this value carry no loss.
inline constexpr int64_t kIgnoredTarget = -100;

struct Sample {
  int source = 0;
  int64_t epoch = 0;                     // how often this source was passed over before
  int64_t window = 0;                    // window index within the source
  std::vector<int64_t> tokens;           // [sequence_length + 1]
  std::vector<int32_t> document_starts;  // offsets in (0, sequence_length] at which another document begins, ascending
  // [sequence_length]: what each token predicts, or kIgnoredTarget. Empty: each token predicts the next.
  std::vector<int64_t> targets;
  int64_t filling = 0;  // how many of the sequence_length tokens only fill it, at its end
};

// Window w of a source is tokens [w*L, w*L + L + 1) of its token stream (L = sequence_length). Every epoch visits all
// windows in another order, given by a cycle-walking block cipher: constant memory, no index files. With several
// sources, exact quotas by weight in every block of samples decide which source sample i comes from.
class Sampler {
 public:
  static absl::StatusOr<std::shared_ptr<const Sampler>> Create(std::vector<std::shared_ptr<const TokenStream>> sources,
                                                               std::vector<double> weights, int64_t sequence_length,
                                                               uint64_t seed, bool shuffle);
  virtual ~Sampler() = default;

  virtual absl::StatusOr<Sample> Get(int64_t index) const = 0;  // Thread-safe.
  virtual int64_t num_windows() const = 0;                      // Of all sources together; samples in one epoch.
  virtual int64_t sequence_length() const = 0;
};

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_SAMPLER_H_
