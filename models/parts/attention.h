// models/parts/attention.h
// Grouped-query attention (arXiv 2305.13245) with what families have of it.
#ifndef TRIREME_MODELS_PARTS_ATTENTION_H_
#define TRIREME_MODELS_PARTS_ATTENTION_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "models/spec/part.h"

namespace trireme {

// A norm of queries and keys.
struct HeadNormSpec {
  enum Extent {
    kHead,      // each head apart, all with the same weight [head_dim]
    kEachHead,  // each head apart, with a weight of its own
    kAllHeads,  // the whole width at once
  } extent = kHead;
  NormSpec norm;
  bool after_rotation = false;
};

struct AttentionSettings {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  bool qkv_bias = false, output_bias = false;  // of the projections
  double clip = 0;                             // queries, keys and values are cut to [-clip, clip]; 0: they are not
  bool clip_after_norm = false;                // once heads are normed
  std::optional<HeadNormSpec> head_norm;
  std::optional<Rotation> rotation;
  bool alibi = false;  // scores fall with distance (arXiv 2108.12409)
  bool sinks = false;  // each head has a learned score more in its softmax, for a key without a value
  int64_t window = 0;  // tokens that a query sees, itself included; 0: all earlier ones
  double scale = 0;    // of scores; 0: 1 / sqrt(head_dim)
  double softcap = 0;  // scores s become c tanh(s / c); 0: they do not
};

// Parameters self_attn.{q,k,v,o}_proj, q_norm, k_norm and sinks, with Llama's names.
std::shared_ptr<const BlockPart> MakeAttention(const AttentionSettings& settings);

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_ATTENTION_H_
