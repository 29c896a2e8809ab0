// models/spec/decoder_spec.h
// A decoder-only transformer as numbers and parts: what a model family makes of its configuration.
#ifndef TRIREME_MODELS_SPEC_DECODER_SPEC_H_
#define TRIREME_MODELS_SPEC_DECODER_SPEC_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "kernels/matrix/quantized_matrix.h"
#include "launch/base/status.h"
#include "models/spec/adapter_spec.h"
#include "models/spec/part.h"

namespace trireme {

struct WeightNames;

// What token ids become before the first block.
struct EmbeddingSpec {
  double scale = 1;              // rows are multiplied by it, rounded to their type
  std::optional<NormSpec> norm;  // of the sum, model.embed_norm
  bool positions = false;        // rows of a learned table are added, one for each of max_positions
  int64_t position_offset = 0;   // rows of that table before the one of position 0
};

// A residual block: how its two parts are put together.
struct LayerSpec {
  std::shared_ptr<const BlockPart> mixer, feed_forward;
  NormSpec norm;                   // of every norm of the block
  bool norm_before = true;         // parts read the stream through a norm
  bool norm_after = false;         // what parts add to the stream goes through one
  bool parallel = false;           // both parts read the block's input and are added together
  bool shared_norm = false;        // parallel: through one norm, the mixer's
  double residual_multiplier = 1;  // what parts add is multiplied by it
};

// What becomes of the last block's stream.
struct HeadSpec {
  NormSpec norm;
  bool bias = false;   // lm_head.bias
  double scale = 1;    // logits are multiplied by it
  double softcap = 0;  // then logits l become c tanh(l / c); 0: they do not
};

struct DecoderSpec {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  EmbeddingSpec embedding;
  std::vector<LayerSpec> layers;  // num_layers
  HeadSpec head;
  bool tied_embeddings = false;
  double initializer_range = 0.02;
  bool scaled_residual_init = false;
  // Heads whose rows checkpoints hold in another order (RotaryOrder): how many dimensions of a head turn. 0: none.
  int64_t reordered_rotary_dims = 0;
  // What the family's checkpoints call its parameters (models/spec/weight_table.h); null: what we do.
  std::shared_ptr<const WeightNames> names;

  // What is trained instead of the parameters, which are frozen then; null: nothing.
  std::shared_ptr<const AdapterSpec> adapter;
  std::vector<ParameterGroup> groups;              // trained otherwise than the rest (models/spec/parameter_groups.h)
  std::optional<QuantizationFormat> quantization;  // of linear layers in blocks
  bool quantized_layers = true;                    // ... of layers without experts
  bool quantized_experts = false;                  // ... and of experts
  std::vector<std::string> unquantized;  // modules that stay as they are: paths, or beginnings or ends of them

  const LayerSpec& layer(int64_t index) const { return layers[static_cast<size_t>(index)]; }
  std::vector<AttentionShape> attentions() const;  // that occur, each once
  std::set<int64_t> windows() const;               // that occur
  std::vector<int64_t> experts() const;            // of each layer; 0: it has none
  bool has_experts() const;                        // in any layer
  bool balances_experts() const;                   // any layer has a correction that follows the loads of its experts
  int64_t second_rotation_beyond() const;          // Rotation::second_beyond() of the layers that have it; 0: none does

  // Floating-point operations that one token takes in a forward pass of all blocks, or of one: 2 per weight that
  // multiplies, and the attention scores of a causal sequence (each query sees half of it on average); and in the head.
  double BlocksForwardFlopsPerToken(int64_t sequence_length) const;
  double BlockForwardFlopsPerToken(int64_t layer, int64_t sequence_length) const;
  double HeadForwardFlopsPerToken() const;
  // In training: three times as many, less the gradients of weights that are frozen. with_target: the share of tokens
  // that have one, the only ones the head looks at. Recomputation and adapters are not counted.
  double TrainingFlopsPerToken(int64_t sequence_length, double with_target = 1) const;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_DECODER_SPEC_H_
