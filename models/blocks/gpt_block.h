// models/blocks/gpt_block.h
// The block of GPT-2 and GPT-NeoX.
#ifndef TRIREME_MODELS_BLOCKS_GPT_BLOCK_H_
#define TRIREME_MODELS_BLOCKS_GPT_BLOCK_H_

#include <vector>

#include "kernels/base/weight.h"
#include "models/spec/decoder_spec.h"
#include "models/spec/parameters.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/functions.h"

namespace trireme {

// h = x + attention(LayerNorm(x)), then h + mlp(LayerNorm(h)), or with spec.parallel_residual h + mlp(LayerNorm(x)).
// The MLP is two projections with GELU between them. x [this tensor rank's tokens, hidden]. weights: of
// index.parameters, in their order.
at::Tensor GptBlock(const at::Tensor& x, const std::vector<Weight*>& weights, const BlockParameters& index,
                    const DecoderSpec& spec, const SelfAttentionArguments& attention, ProcessGroup& tensor,
                    KeptResults* kept);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_GPT_BLOCK_H_
