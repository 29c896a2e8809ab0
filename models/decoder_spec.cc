#include "models/decoder_spec.h"

#include <algorithm>

namespace trireme {
namespace {

int64_t BlockWeights(const DecoderSpec& s) {
  const int64_t q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
  return s.hidden_size * (q + 2 * kv) + q * s.hidden_size + 3 * s.hidden_size * s.intermediate_size;
}

}  // namespace

int64_t DecoderSpec::num_parameters() const {
  const int64_t embeddings = vocab_size * hidden_size * (tied_embeddings ? 1 : 2);
  return embeddings + num_layers * (BlockWeights(*this) + 2 * hidden_size) + hidden_size;
}

double DecoderSpec::TrainingFlopsPerToken(int64_t sequence_length) const {
  const double visible =
      sliding_window > 0 ? std::min<double>(sliding_window, sequence_length / 2.0) : sequence_length / 2.0;
  const double attention = 12.0 * num_layers * num_heads * head_dim * visible;
  return 6.0 * (num_layers * BlockWeights(*this) + vocab_size * hidden_size) + attention;
}

}  // namespace trireme
