// models/blocks/units.h
// The three kinds of units of a decoder. What they get outlives them, but for what they own.
#ifndef TRIREME_MODELS_BLOCKS_UNITS_H_
#define TRIREME_MODELS_BLOCKS_UNITS_H_

#include <memory>
#include <string>
#include <vector>

#include "models/blocks/shared.h"

namespace trireme {

// Token ids to embeddings. positions: the buffer of the learned table that is added; null: there is none.
std::unique_ptr<Unit> MakeEmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* positions,
                                        std::shared_ptr<const DecoderShared> shared);

// A block's parameters on this rank.
struct BlockStorage {
  std::vector<ParameterBuffer*> buffers;           // plain, quantized, adapters: those that there are
  std::vector<Weight*> weights;                    // of index.parameters, in their order
  std::vector<GroupAdapter> groups;                // that have adapters, whose parameters are in the last buffer
  std::vector<std::unique_ptr<Adapter>> adapters;  // of each group, hung on its weight
};
// x + attention(norm(x)), then + mlp(norm(.)): Llama's block, with what the specification adds; or GPT's block.
std::unique_ptr<Unit> MakeBlockUnit(std::string name, BlockStorage storage, int64_t layer, BlockParameters index,
                                    std::shared_ptr<const DecoderShared> shared);

// The last norm, the projection onto the vocabulary and the loss. `head` holds the matrix as its parameter head_index.
// adapter: of the head, its parameters in `added`; null: none.
std::unique_ptr<Unit> MakeHeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index,
                                   ParameterBuffer* added, std::unique_ptr<Adapter> adapter,
                                   std::shared_ptr<const DecoderShared> shared);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_UNITS_H_
