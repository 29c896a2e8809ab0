// models/spec/decoder_spec.h
// A decoder-only transformer as numbers: what a model family makes of its configuration.
#ifndef TRIREME_MODELS_SPEC_DECODER_SPEC_H_
#define TRIREME_MODELS_SPEC_DECODER_SPEC_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/ops.h"
#include "kernels/matrix/quantized_matrix.h"
#include "kernels/rows/gelu.h"
#include "launch/base/status.h"
#include "models/spec/adapter_spec.h"

namespace trireme {

// What may differ between blocks.
struct LayerPattern {
  int64_t window = 0;  // tokens that a query sees, itself included; 0: all earlier ones
  bool rope = true;    // positions rotate queries and keys
  bool local = false;  // by local_rope_theta, without rescaling
};

// How the frequencies of rotation are changed for contexts longer than those they were made for; numbers as in
// ModelConfig.rope_scaling.
struct RotaryScaling {
  enum Kind { kLlama3, kLinear, kYarn } kind = kLinear;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // kLlama3
  int64_t original_max_position_embeddings = 8192;   // kLlama3, kYarn
  double beta_fast = 32, beta_slow = 1;              // kYarn
  std::optional<double> attention_factor;            // kYarn; none: 0.1 ln(factor) + 1
};

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
  double local_rope_theta = 10000;
  std::optional<RotaryScaling> rope_scaling;
  double rms_norm_eps = 1e-5;  // of LayerNorms too
  bool tied_embeddings = false;
  double initializer_range = 0.02;
  bool scaled_residual_init = false;
  int64_t sliding_window = 0;         // 0: none
  std::vector<LayerPattern> pattern;  // one per layer; empty: all have sliding_window and rotate

  bool qkv_bias = false, output_bias = false;  // of attention's projections
  bool qk_norm = false;                        // RMSNorm over each head of q and k, before rotation
  bool norm_offset = false;                    // norms multiply by 1 + weight
  bool post_norms = false;                     // what a sublayer adds to the residual stream is normed first
  Activation activation = Activation::kSilu;   // of the gate
  double attention_scale = 0;                  // of scores; 0: 1 / sqrt(head_dim)
  double attention_softcap = 0;                // scores s become c tanh(s / c); 0: they do not
  double final_logit_softcap = 0;              // logits likewise
  double embedding_scale = 1;                  // embeddings are multiplied by it, rounded to their type
  int64_t rotary_dim = 0;                      // dimensions of a head that positions rotate (RotaryOrder); 0: all

  // Blocks with LayerNorms that have biases, and an MLP of two projections with biases (models/blocks/gpt_block.h). Of
  // the above they take neither qk_norm, norm_offset, post_norms nor activation.
  bool gpt_block = false;
  Gelu gelu = Gelu::kErf;          // of the MLP
  bool parallel_residual = false;  // attention and MLP read the same input and are added together
  bool learned_positions = false;  // rows of a table are added to the embeddings, max_positions of them

  // What is trained instead of the parameters, which are frozen then; null: nothing.
  std::shared_ptr<const AdapterSpec> adapter;
  std::optional<QuantizationFormat> quantization;  // of linear layers in blocks
  std::vector<std::string> unquantized;  // modules that stay as they are: paths, or beginnings or ends of them

  LayerPattern layer(int64_t index) const {
    return pattern.empty() ? LayerPattern{sliding_window} : pattern[static_cast<size_t>(index)];
  }
  std::set<int64_t> windows() const;  // that occur

  // Floating-point operations that one token takes in a forward pass of a block (their mean): 2 per weight that
  // multiplies, and the attention scores of a causal sequence (each query sees half of it on average); and in the head.
  double BlockForwardFlopsPerToken(int64_t sequence_length) const;
  double HeadForwardFlopsPerToken() const;
  // In training: three times as many, less the gradients of weights that are frozen. with_target: the share of tokens
  // that have one, the only ones the head looks at. Recomputation and adapters are not counted.
  double TrainingFlopsPerToken(int64_t sequence_length, double with_target = 1) const;

 private:
  int64_t BlockWeights() const;  // that multiply
};

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_DECODER_SPEC_H_
