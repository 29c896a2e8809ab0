// models/parts/latent_attention.h
// Latent attention (arXiv 2405.04434): keys and values of all heads are made from one narrow row of each token, queries
// from another.
#ifndef TRIREME_MODELS_PARTS_LATENT_ATTENTION_H_
#define TRIREME_MODELS_PARTS_LATENT_ATTENTION_H_

#include <cstdint>
#include <memory>

#include "models/spec/part.h"
#include "parallel/layers/functions.h"

namespace trireme {

struct LatentAttentionSettings {
  int64_t heads = 0;
  LatentHeads head;
  int64_t query_rank = 0;   // width of the row that queries are made from; 0: from the stream itself
  int64_t latent_rank = 0;  // and of the one for keys and values
  bool bias = false;        // of the products that read or write the stream, but for q_proj
  double eps = 1e-6;        // of the norms of both rows
  Rotation rotation;        // of head.turning dimensions
  double scale = 0;         // of scores; 0: 1 / sqrt(head.still + head.turning)
};

// Parameters self_attn.{q_a_proj, q_a_layernorm, q_b_proj} or q_proj, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj and
// o_proj, as DeepSeek has them. Each tensor rank makes the narrow rows of its own tokens, and some heads of all.
std::shared_ptr<const BlockPart> MakeLatentAttention(const LatentAttentionSettings& settings);

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_LATENT_ATTENTION_H_
