#include "models/spec/decoder_spec.h"

#include <algorithm>

namespace trireme {

std::set<int64_t> DecoderSpec::windows() const {
  std::set<int64_t> all;
  for (int64_t i = 0; i < num_layers; ++i) all.insert(layer(i).window);
  return all;
}

int64_t DecoderSpec::BlockWeights() const {
  const int64_t q = num_heads * head_dim, kv = num_kv_heads * head_dim;
  return hidden_size * (q + 2 * kv) + q * hidden_size + (gpt_block ? 2 : 3) * hidden_size * intermediate_size;
}

double DecoderSpec::HeadForwardFlopsPerToken() const { return 2.0 * static_cast<double>(vocab_size * hidden_size); }

double DecoderSpec::BlockForwardFlopsPerToken(int64_t sequence_length) const {
  const int64_t q = num_heads * head_dim;
  double attention = 0;
  for (int64_t i = 0; i < num_layers; ++i) {
    const double window = static_cast<double>(layer(i).window), half = static_cast<double>(sequence_length) / 2;
    attention += 4.0 * static_cast<double>(q) * (window > 0 ? std::min(window, half) : half);
  }
  return 2.0 * static_cast<double>(BlockWeights()) + attention / static_cast<double>(num_layers);
}

double DecoderSpec::TrainingFlopsPerToken(int64_t sequence_length, double with_target) const {
  const double layers = static_cast<double>(num_layers), head = with_target * HeadForwardFlopsPerToken();
  const double forward = layers * BlockForwardFlopsPerToken(sequence_length) + head;
  // A frozen weight has no gradient: forward and the input's gradient only.
  const bool frozen = adapter != nullptr || quantization.has_value();
  return 3 * forward - (frozen ? layers * 2 * static_cast<double>(BlockWeights()) + head : 0);
}

}  // namespace trireme
