// serving/sampling.h
// The next token from logits.
#ifndef TRIREME_SERVING_SAMPLING_H_
#define TRIREME_SERVING_SAMPLING_H_

#include <cstdint>
#include <vector>

namespace trireme {

struct SamplingOptions {
  double temperature = 0;  // 0: the likeliest token
  int64_t top_k = 0;       // keep this many of the likeliest; 0: all
  double top_p = 1;        // then keep the fewest likeliest whose probabilities reach this
  uint64_t seed = 1234;
};

// Step `step` of a text. The random number of a token id depends on (seed, step, id) only, so round-off that swaps two
// unlikely tokens changes nothing. Ties go to the lowest id. Where logits are NaN it gives the first such id, whose
// LogProbability() is NaN.
int64_t SampleToken(const float* logits, int64_t vocab_size, const SamplingOptions& options, uint64_t step);

// log softmax(logits)[id], in nat.
double LogProbability(const float* logits, int64_t vocab_size, int64_t id);

}  // namespace trireme

#endif  // TRIREME_SERVING_SAMPLING_H_
