// kernels/base/nf4_math.h
// The arithmetic of quantized weights, read by the CPU loops and the CUDA kernels alike; no tensors, no standard
// library templates. NF4: 4-bit NormalFloat (arXiv 2305.14314) in blocks of 64 along the flattened matrix, as
// bitsandbytes computes it. MXFP4 (OCP Microscaling 1.0): 4-bit numbers (one bit of mantissa) in blocks of 32 whose
// scales are powers of two.
#ifndef TRIREME_KERNELS_BASE_NF4_MATH_H_
#define TRIREME_KERNELS_BASE_NF4_MATH_H_

#include <stdint.h>

#include "kernels/base/element_math.h"
#include "kernels/base/host_device.h"

namespace trireme {

inline constexpr int64_t kNf4Block = 64;      // elements with one scale
inline constexpr int64_t kNestedBlock = 256;  // scales with one scale, where they are quantized too

// What each of the 16 codes stands for, in units of the block's largest magnitude.
#define TRIREME_NF4_CODES                                                                             \
  -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,    \
      -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, \
      0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
inline constexpr float kNf4Codes[16] = {TRIREME_NF4_CODES};

inline constexpr int64_t kMxfp4Block = 32;
#define TRIREME_MXFP4_CODES \
  0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f
inline constexpr float kMxfp4Codes[16] = {TRIREME_MXFP4_CODES};
// 2^(code - 127); 255 would be NaN and is not written.
TRIREME_HOST_DEVICE inline float Mxfp4Scale(uint8_t code) {
  return BitsFloat(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

// What the values were before: dequantized ones are rounded to that type.
enum class ValueType { kFloat32, kBfloat16, kFloat16 };

// x rounded to float16, to nearest even.
TRIREME_HOST_DEVICE inline float RoundThroughHalf(float x) {
  const uint32_t bits = FloatBits(x), magnitude = bits & 0x7FFFFFFF, sign = bits & 0x80000000;
  if (magnitude >= 0x477FF000)
    return magnitude > 0x7F800000 ? x : BitsFloat(sign | 0x7F800000);  // from 65520: infinity
  if (magnitude < 0x38800000)  // Below 2^-14 float16 has steps of 2^-24, as float32 has from 0.5 on.
    return BitsFloat(sign | FloatBits(BitsFloat(magnitude) + 0.5f - 0.5f));
  return BitsFloat((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000);
}

TRIREME_HOST_DEVICE inline float RoundTo(ValueType type, float x) {
  if (type == ValueType::kBfloat16) return ToFloat(RoundToBf16(x));
  return type == ValueType::kFloat16 ? RoundThroughHalf(x) : x;
}

// A block's scale from its 8-bit code. Two roundings, never a fused multiply-add: files are compatible to the bit.
TRIREME_HOST_DEVICE inline float NestedScale(float mapped, float nested_absmax, float offset) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(mapped, nested_absmax), offset);
#else
  return mapped * nested_absmax + offset;
#endif
}

// Blocks that lie one after another in this rank's memory, and where their scales are. Pointers are the device's.
struct Nf4Blocks {
  const uint8_t* packed = nullptr;       // [blocks * 32]: the even element in the high half of a byte
  const float* absmax = nullptr;         // [blocks]; null: `codes`
  const uint8_t* codes = nullptr;        // [blocks] of the nested map
  const float* nested_map = nullptr;     // [256]
  const float* nested_absmax = nullptr;  // [(blocks of the whole matrix + 255) / 256]
  float nested_offset = 0;
  int64_t blocks = 0;
  // Block i is number first_block + (skip + i) / row_blocks * row_stride + (skip + i) % row_blocks of the whole matrix:
  // a rank may hold a part of each row.
  int64_t first_block = 0, skip = 0, row_blocks = 1, row_stride = 1;
  ValueType type = ValueType::kFloat32;
};

// The scale of block i, where the division of NumberOf was done: `number` in the whole matrix.
TRIREME_HOST_DEVICE inline float ScaleOf(const Nf4Blocks& b, int64_t i, int64_t number) {
  if (b.absmax != nullptr) return b.absmax[i];
  return NestedScale(b.nested_map[b.codes[i]], b.nested_absmax[number / kNestedBlock], b.nested_offset);
}
TRIREME_HOST_DEVICE inline int64_t NumberOf(const Nf4Blocks& b, int64_t i) {
  return b.first_block + (b.skip + i) / b.row_blocks * b.row_stride + (b.skip + i) % b.row_blocks;
}

// Blocks of MXFP4 that lie one after another.
struct Mxfp4Blocks {
  const uint8_t* packed = nullptr;  // [blocks * 16]: the even element in the high half of a byte, as in NF4
  const uint8_t* scales = nullptr;  // [blocks], for Mxfp4Scale
  int64_t blocks = 0;
};

// Rows of 8-bit codes, each with a scale (LLM.int8, arXiv 2208.07339). Consecutive elements of them.
struct Int8Rows {
  const int8_t* codes = nullptr;  // [n]
  const float* absmax = nullptr;  // of every row
  int64_t n = 0;
  int64_t first = 0;    // index of the first element within the rows
  int64_t columns = 1;  // of a row
};
TRIREME_HOST_DEVICE inline float Int8Value(int8_t code, float absmax) {
  return static_cast<float>(code) * absmax * 7.874015718698502e-3f;  // 1 / 127
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_NF4_MATH_H_
