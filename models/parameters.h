// models/parameters.h
// The parameters of each unit, in the order of its buffer, under the names of Hugging Face's Llama checkpoints. What
// other families call them, and how they store them: models/weight_table.h.
#ifndef TRIREME_MODELS_PARAMETERS_H_
#define TRIREME_MODELS_PARAMETERS_H_

#include <string>
#include <vector>

#include "models/decoder_spec.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

constexpr char kEmbeddingName[] = "model.embed_tokens";
constexpr char kPositionsName[] = "model.embed_positions";

// Indices into `parameters`; -1: the model has none. q, gate and q_bias begin fused groups.
struct BlockParameters {
  std::vector<ParameterSpec> parameters;
  int input_norm = -1, q = -1, q_bias = -1, q_norm = -1, k_norm = -1, o = -1, o_bias = -1;
  int post_attention_norm = -1;  // of what attention adds
  int mlp_norm = -1, gate = -1, down = -1;
  int post_mlp_norm = -1;  // of what the MLP adds
  // Of a GPT block, whose MLP has no gate.
  int input_norm_bias = -1, mlp_norm_bias = -1, up = -1, up_bias = -1, down_bias = -1;
};

BlockParameters MakeBlockParameters(const DecoderSpec& spec, int64_t layer);
std::vector<ParameterSpec> EmbeddingParameters(const DecoderSpec& spec);
std::vector<ParameterSpec> PositionParameters(const DecoderSpec& spec);  // none unless positions are learned
std::vector<ParameterSpec> HeadParameters(const DecoderSpec& spec);      // the norm; untied: then the head, the last

// Every parameter of the model, in its order; and by units: embedding (with positions), blocks, head.
std::vector<std::vector<ParameterSpec>> UnitParameters(const DecoderSpec& spec);
std::vector<ParameterSpec> DecoderParameters(const DecoderSpec& spec);
int64_t NumParameters(const DecoderSpec& spec);  // elements; a tied matrix once

}  // namespace trireme

#endif  // TRIREME_MODELS_PARAMETERS_H_
