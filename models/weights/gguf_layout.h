// models/weights/gguf_layout.h
// How a GGUF file stores the decoder's parameters: llama.cpp's names, stacks of experts, fused projections, the order
// of rows.
#ifndef TRIREME_MODELS_WEIGHTS_GGUF_LAYOUT_H_
#define TRIREME_MODELS_WEIGHTS_GGUF_LAYOUT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/formats/gguf/gguf_architecture.h"
#include "models/formats/gguf/gguf_rope.h"
#include "models/spec/weight_table.h"

namespace trireme {

struct GgufLayout {
  // Of a stored tensor.
  struct Extra {
    int64_t paired_heads = 0;  // the width of heads whose rows i and i + width / 2 stand side by side; 0: as ours do
    float offset = 0;          // what its elements exceed ours by: 1 where a norm learns the distance from one. Adding
                               // it in 32 bits rounds what is below 2^-24, so such a weight comes back within 2^-24
    std::string key = "";      // it is no tensor, but a number in the list that the metadata have under this key
    int64_t element = 0;       // ... at this place
  };
  const GgufArchitecture* architecture = nullptr;
  WeightTable table;          // by names of the file
  std::vector<Extra> extras;  // of table.stored
};

GgufLayout GgufLayoutOf(const GgufArchitecture& architecture, const DecoderSpec& spec);

// The tensors of a file, in order; `factors` stand behind the embedding. Vectors, norms and routers are F32, matrices
// `type`; in a Q4_0 file the token embedding and the output matrix are Q8_0, as they are the most sensitive. An error
// (kConfig) when rows are not whole blocks.
absl::StatusOr<std::vector<GgufTensor>> GgufTensors(const GgufLayout& layout, const GgufFactors& factors,
                                                    GgufType type);

// Whether a file holds the tensors of the layout with their shapes, of whatever type, and no others (position factors
// aside); else kData.
absl::Status CheckGgufTensors(const GgufHeader& header, const GgufLayout& layout);

// The number under extra.key; null: the file has none.
const float* FindGgufNumber(const GgufHeader& header, const GgufLayout::Extra& extra);

// Of heads whose rows stand in pairs, row i of ours is row PairedRow(i) of the file's; OwnRow is the inverse. Rows stay
// within their head, so whole heads can be handled apart.
int64_t PairedRow(int64_t own_row, int64_t head_dim);
int64_t OwnRow(int64_t paired_row, int64_t head_dim);

// The tensor that holds a parameter and nothing else, as an index into table.stored; none: nullopt.
std::optional<size_t> GgufTensorOf(const GgufLayout& layout, const std::string& parameter);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_GGUF_LAYOUT_H_
