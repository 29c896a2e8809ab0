#include "models/decoder_spec.h"

#include <algorithm>

namespace trireme {

std::set<int64_t> DecoderSpec::windows() const {
  std::set<int64_t> all;
  for (int64_t i = 0; i < num_layers; ++i) all.insert(layer(i).window);
  return all;
}

double DecoderSpec::TrainingFlopsPerToken(int64_t sequence_length) const {
  const int64_t q = num_heads * head_dim, kv = num_kv_heads * head_dim;
  const int64_t block =
      hidden_size * (q + 2 * kv) + q * hidden_size + (gpt_block ? 2 : 3) * hidden_size * intermediate_size;
  double attention = 0;
  for (int64_t i = 0; i < num_layers; ++i) {
    const double window = static_cast<double>(layer(i).window), half = static_cast<double>(sequence_length) / 2;
    attention += 12.0 * static_cast<double>(q) * (window > 0 ? std::min(window, half) : half);
  }
  // A frozen weight has no gradient: forward and the input's gradient only.
  const double per_weight = adapter != nullptr || quantization.has_value() ? 4 : 6;
  return per_weight * static_cast<double>(num_layers * block + vocab_size * hidden_size) + attention;
}

}  // namespace trireme
