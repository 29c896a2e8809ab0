// models/blocks/units.h
// The three kinds of units of a decoder. What they get outlives them, but for what they own.
#ifndef TRIREME_MODELS_BLOCKS_UNITS_H_
#define TRIREME_MODELS_BLOCKS_UNITS_H_

#include <memory>
#include <string>
#include <vector>

#include "models/blocks/shared.h"

namespace trireme {

// Token ids to embeddings. extras: the buffer of EmbeddingExtras(); null: there are none.
std::unique_ptr<Unit> MakeEmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* extras,
                                        std::shared_ptr<const DecoderShared> shared);

// A block's parameters on this rank.
struct BlockStorage {
  std::vector<ParameterBuffer*> buffers;           // plain, of experts, quantized, adapters: those that there are
  std::vector<ParameterSpec> parameters;           // BlockParameters()
  std::vector<Weight*> weights;                    // theirs
  std::vector<GroupAdapter> groups;                // that have adapters, whose parameters are in the last buffer
  std::vector<std::unique_ptr<Adapter>> adapters;  // of each group, then of experts; each hung on its weight
};
// A residual block of two parts, as the layer's specification puts them together.
std::unique_ptr<Unit> MakeBlockUnit(int64_t layer, BlockStorage storage, std::shared_ptr<const DecoderShared> shared);

// The last norm, the projection onto the vocabulary and the loss. norm: the buffer of HeadParameters(), null where
// there are none; `head` holds the matrix as its parameter head_index. adapter: of the head, its parameters in `added`;
// null: none.
std::unique_ptr<Unit> MakeHeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index,
                                   ParameterBuffer* added, std::unique_ptr<Adapter> adapter,
                                   std::shared_ptr<const DecoderShared> shared);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_UNITS_H_
