// models/formats/gguf/gguf_blocks.h
// Element types of GGUF tensors and the blocks their rows are made of (ggml's ggml-common.h and ggml-quants.c).
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_BLOCKS_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_BLOCKS_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>

#include "launch/base/status.h"

namespace trireme {

// A type's number in the file. Other numbers than these occur: FindGgufType() knows all of ggml's sizes.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ6_K = 14,
  kBF16 = 30,
  kMXFP4 = 39,
};

struct GgufTypeInfo {
  GgufType type;
  const char* name;        // as ggml spells it: "Q4_K"
  int64_t block_elements;  // a row is a whole number of blocks
  int64_t block_bytes;
};

// Null for a type ggml does not have.
const GgufTypeInfo* FindGgufType(GgufType type);
std::optional<GgufType> GgufTypeNamed(absl::string_view name);
std::string GgufTypeName(GgufType type);  // "type 77" for an unknown one

// Bytes of `columns` elements, a whole number of blocks of a known type.
int64_t GgufRowBytes(GgufType type, int64_t columns);

// Decodes elements [begin, end) of the run of blocks at `blocks`; the range may begin and end inside a block. Equal to
// ggml's dequantize_row_* bit for bit. Known: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, MXFP4; an error (kData)
// for others.
absl::Status GgufDequantize(GgufType type, const uint8_t* blocks, int64_t begin, int64_t end, float* out);

// Encodes `count` values, a whole number of blocks, byte for byte as ggml's quantize_row_*_ref. Known: F32, F16, BF16,
// Q8_0, Q4_0. A value that the type cannot hold (not finite, or too large for 16-bit floating point; F32 and BF16 hold
// all) is an error (kData), and so is another type.
absl::Status GgufQuantize(GgufType type, const float* values, int64_t count, uint8_t* out);

// IEEE half precision, rounded to nearest even.
uint16_t FloatToHalf(float value);
float HalfToFloat(uint16_t bits);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_BLOCKS_H_
