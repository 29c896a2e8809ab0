// models/decoder_spec.h
// A decoder-only transformer as numbers: what a model family makes of its configuration.
#ifndef TRIREME_MODELS_DECODER_SPEC_H_
#define TRIREME_MODELS_DECODER_SPEC_H_

#include <cstdint>
#include <optional>

#include "configs/run_config.pb.h"
#include "launch/status.h"

namespace trireme {

struct DecoderSpec {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  double rms_norm_eps = 1e-5;
  bool tied_embeddings = false;
  double initializer_range = 0.02;
  bool scaled_residual_init = false;
  int64_t sliding_window = 0;  // 0: none

  int64_t num_parameters() const;  // a tied matrix once

  // Floating-point operations that training on one token takes: 6 per weight that multiplies, and the attention scores
  // of a causal sequence (each query sees half of it on average). Recomputation is not counted.
  double TrainingFlopsPerToken(int64_t sequence_length) const;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_DECODER_SPEC_H_
