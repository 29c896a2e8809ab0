#include "models/blocks/gpt_block.h"

#include "parallel/layers/gpt_functions.h"

namespace trireme {

at::Tensor GptBlock(const at::Tensor& x, const std::vector<Weight*>& weights, const BlockParameters& index,
                    const DecoderSpec& spec, const SelfAttentionArguments& attention, ProcessGroup& tensor,
                    KeptResults* kept) {
  const auto weight = [&](int i) -> Weight& { return *weights[i]; };
  const auto optional = [&](int i) { return i < 0 ? nullptr : weights[i]; };
  const double eps = spec.rms_norm_eps;
  const at::Tensor qkv = ColumnLinear(LayerNorm(x, weight(index.input_norm), weight(index.input_norm_bias), eps),
                                      weight(index.q), optional(index.q_bias), tensor, kept, kKeepQkv);
  const at::Tensor h =
      Linear(SelfAttention(qkv, attention), weight(index.o), tensor, /*residual=*/x, optional(index.o_bias));
  const at::Tensor normed =
      LayerNorm(spec.parallel_residual ? x : h, weight(index.mlp_norm), weight(index.mlp_norm_bias), eps);
  const at::Tensor up = ColumnLinear(normed, weight(index.up), &weight(index.up_bias), tensor, kept, kKeepGateUp);
  return Linear(ApplyGelu(up, spec.gelu), weight(index.down), tensor, /*residual=*/h, &weight(index.down_bias));
}

}  // namespace trireme
