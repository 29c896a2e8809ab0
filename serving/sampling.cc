#include "serving/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/philox.h"

namespace trireme {
namespace {

// In (0, 1), 53 bits.
double Uniform(RandomKey key, int64_t id) {
  const Random4 random = Philox(key, static_cast<uint64_t>(id), 0);
  const uint64_t bits = (uint64_t{random.word[0]} << 32 | random.word[1]) >> 11;
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

// The ids to choose from.
std::vector<int64_t> Candidates(const float* logits, int64_t vocab_size, const SamplingOptions& options) {
  std::vector<int64_t> ids(vocab_size);
  std::iota(ids.begin(), ids.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  if (options.top_k > 0 && options.top_k < vocab_size) {
    std::nth_element(ids.begin(), ids.begin() + options.top_k, ids.end(), likelier);
    ids.resize(options.top_k);
  }
  if (options.top_p >= 1) return ids;
  std::sort(ids.begin(), ids.end(), likelier);
  std::vector<double> weights;
  for (const int64_t id : ids)
    weights.push_back(std::exp((static_cast<double>(logits[id]) - logits[ids[0]]) / options.temperature));
  const double enough = options.top_p * std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  size_t kept = 0;
  while (kept < ids.size() && (kept == 0 || sum < enough)) sum += weights[kept++];
  ids.resize(kept);
  return ids;
}

}  // namespace

int64_t SampleToken(const float* logits, int64_t vocab_size, const SamplingOptions& options, uint64_t step) {
  // Nothing can be put in order with a NaN, so this comes before all sorting.
  const float* nan = std::find_if(logits, logits + vocab_size, [](float logit) { return std::isnan(logit); });
  if (nan != logits + vocab_size) return nan - logits;
  if (options.temperature == 0) return std::max_element(logits, logits + vocab_size) - logits;
  // The largest of logit / temperature plus Gumbel noise is a draw from the softmax (arXiv 1611.01144).
  const RandomKey key = MakeRandomKey(options.seed, RandomPurpose::kSampling, 0, step);
  int64_t best = -1;
  double best_score = 0;
  for (const int64_t id : Candidates(logits, vocab_size, options)) {
    const double score = logits[id] / options.temperature - std::log(-std::log(Uniform(key, id)));
    if (best >= 0 && (score < best_score || (score == best_score && id > best))) continue;
    best = id;
    best_score = score;
  }
  return best;
}

double LogProbability(const float* logits, int64_t vocab_size, int64_t id) {
  const double largest = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(logits[i] - largest);
  return logits[id] - largest - std::log(sum);
}

}  // namespace trireme
