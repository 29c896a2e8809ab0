// models/formats/hf/packed.h
// Matrices of few bits whose blocks have a scale each, as gpt-oss and DeepSeek publish them in safetensors. MXFP4 (OCP
// Microscaling 1.0): X_blocks U8 [..., rows, columns / 32, 16], the lower half of a byte first, with X_scales U8
// [..., rows, columns / 32], the scale's exponent plus 127. FP8 by blocks: X.weight F8_E4M3 [rows, columns] with
// X.weight_scale_inv F32 or BF16, one for each block of quantization_config.weight_block_size.
#ifndef TRIREME_MODELS_FORMATS_HF_PACKED_H_
#define TRIREME_MODELS_FORMATS_HF_PACKED_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "models/formats/base/json_file.h"
#include "models/formats/hf/hf_directory.h"

namespace trireme {

struct PackedMatrix {
  std::vector<int64_t> shape;                         // of the numbers; all but the last dimension are rows
  const uint8_t *codes = nullptr, *scales = nullptr;  // in the directory's files, not aligned
  int64_t block_rows = 1, block_columns = 32;
  enum Kind { kMxfp4, kFp8 } kind = kMxfp4;
  bool wide_scales = false;  // kFp8: float32, not bfloat16

  int64_t columns() const { return shape.back(); }
};

struct PackedTensors {
  std::map<std::string, PackedMatrix> matrices;  // by the name of their codes
  std::set<std::string> parts;                   // every tensor that belongs to one
};

// All of a directory; none is fine. Errors are kData: scales that are missing or of another size, a block size that
// config.json does not say.
absl::StatusOr<PackedTensors> ReadPackedTensors(const HfDirectory& directory);

// Rows [row, row + rows) x columns [column, column + columns) as numbers, rows of `columns` one after another.
void Unpack(const PackedMatrix& matrix, int64_t row, int64_t rows, int64_t column, int64_t columns, float* out);

// Whether config.json's quantization_config is about such matrices; what cannot be followed is added to `problems`.
bool IsPackedConfig(const nlohmann::json& object, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_PACKED_H_
