#include "models/formats/gguf/gguf_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace trireme {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian and read in place");

constexpr int64_t kMaxBlock = 256;

constexpr GgufType Type(uint32_t number) { return static_cast<GgufType>(number); }

// GGML_TYPE_*: number, name, elements and bytes of a block. Numbers that ggml has retired are left out.
constexpr GgufTypeInfo kTypes[] = {
    {Type(0), "F32", 1, 4},         {Type(1), "F16", 1, 2},         {Type(2), "Q4_0", 32, 18},
    {Type(3), "Q4_1", 32, 20},      {Type(6), "Q5_0", 32, 22},      {Type(7), "Q5_1", 32, 24},
    {Type(8), "Q8_0", 32, 34},      {Type(10), "Q2_K", 256, 84},    {Type(11), "Q3_K", 256, 110},
    {Type(12), "Q4_K", 256, 144},   {Type(13), "Q5_K", 256, 176},   {Type(14), "Q6_K", 256, 210},
    {Type(15), "Q8_K", 256, 292},   {Type(16), "IQ2_XXS", 256, 66}, {Type(17), "IQ2_XS", 256, 74},
    {Type(18), "IQ3_XXS", 256, 98}, {Type(19), "IQ1_S", 256, 50},   {Type(20), "IQ4_NL", 32, 18},
    {Type(21), "IQ3_S", 256, 110},  {Type(22), "IQ2_S", 256, 82},   {Type(23), "IQ4_XS", 256, 136},
    {Type(24), "I8", 1, 1},         {Type(25), "I16", 1, 2},        {Type(26), "I32", 1, 4},
    {Type(27), "I64", 1, 8},        {Type(28), "F64", 1, 8},        {Type(29), "IQ1_M", 256, 56},
    {Type(30), "BF16", 1, 2},       {Type(34), "TQ1_0", 256, 54},   {Type(35), "TQ2_0", 256, 66},
    {Type(39), "MXFP4", 32, 17},
};

float HalfAt(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return HalfToFloat(bits);
}

void PutHalf(float value, uint8_t* bytes) {
  const uint16_t bits = FloatToHalf(value);
  std::memcpy(bytes, &bits, sizeof(bits));
}

bool IsFiniteHalf(float value) { return (FloatToHalf(value) & 0x7C00) != 0x7C00; }

// Decoders take whole blocks.

void DecodeF32(const uint8_t* in, int64_t blocks, float* out) { std::memcpy(out, in, blocks * sizeof(float)); }

void DecodeF16(const uint8_t* in, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = HalfAt(in + 2 * i);
}

void DecodeBF16(const uint8_t* in, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) {
    uint16_t bits;
    std::memcpy(&bits, in + 2 * i, sizeof(bits));
    out[i] = std::bit_cast<float>(uint32_t{bits} << 16);
  }
}

// scale, 32 signed bytes
void DecodeQ8_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 34, out += 32) {
    const float d = HalfAt(in);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(in[2 + i])) * d;
  }
}

// exponent of the scale, 16 bytes: elements 0 to 15 in the low nibbles, 16 to 31 in the high ones
void DecodeMXFP4(const uint8_t* in, int64_t blocks, float* out) {
  constexpr float kTwice[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // E2M1; -0 becomes 0
  for (; blocks > 0; --blocks, in += 17, out += 32) {
    const float half = std::ldexp(1.0f, int{in[0]} - 128);
    for (int i = 0; i < 16; ++i) {
      out[i] = half * kTwice[in[1 + i] & 15];
      out[i + 16] = half * kTwice[in[1 + i] >> 4];
    }
  }
}

// scale, 16 bytes: elements 0 to 15 in the low nibbles, 16 to 31 in the high ones
void DecodeQ4_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 18, out += 32) {
    const float d = HalfAt(in);
    for (int i = 0; i < 16; ++i) {
      out[i] = static_cast<float>((in[2 + i] & 15) - 8) * d;
      out[i + 16] = static_cast<float>((in[2 + i] >> 4) - 8) * d;
    }
  }
}

// scale, minimum, 16 bytes as in Q4_0
void DecodeQ4_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 20, out += 32) {
    const float d = HalfAt(in), m = HalfAt(in + 2);
    for (int i = 0; i < 16; ++i) {
      out[i] = static_cast<float>(in[4 + i] & 15) * d + m;
      out[i + 16] = static_cast<float>(in[4 + i] >> 4) * d + m;
    }
  }
}

// scale of scales, scale of minima, 12 bytes with 8 six-bit scales and minima, 128 bytes of nibbles: every 32 bytes
// hold 32 elements in their low nibbles and the next 32 in the high ones
void DecodeQ4_K(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 144, out += 256) {
    const float d = HalfAt(in), dmin = HalfAt(in + 2);
    const uint8_t* packed = in + 4;
    const uint8_t* nibbles = in + 16;
    for (int group = 0; group < 8; ++group) {
      int scale, minimum;
      if (group < 4) {
        scale = packed[group] & 63;
        minimum = packed[group + 4] & 63;
      } else {
        scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
        minimum = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
      }
      const float d_group = d * static_cast<float>(scale), m_group = dmin * static_cast<float>(minimum);
      const uint8_t* q = nibbles + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) out[group * 32 + i] = d_group * static_cast<float>(q[i] >> shift & 15) - m_group;
    }
  }
}

// 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, scale of scales
void DecodeQ6_K(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 210, out += 256) {
    const float d = HalfAt(in + 208);
    for (int group = 0; group < 8; ++group) {  // of 32 elements
      const int quarter = group % 4;           // of the 128 elements that share 64 nibble and 32 pair bytes
      const uint8_t* low = in + group / 4 * 64 + quarter % 2 * 32;
      const uint8_t* high = in + 128 + group / 4 * 32;
      const uint8_t* scales = in + 192 + group * 2;
      for (int i = 0; i < 32; ++i) {
        const int q = (low[i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4;
        out[group * 32 + i] = d * static_cast<float>(static_cast<int8_t>(scales[i / 16])) * static_cast<float>(q - 32);
      }
    }
  }
}

// Encoders take whole blocks and return the index of the first block with a value that does not fit, -1 when all do.

int64_t EncodeF32(const float* in, int64_t blocks, uint8_t* out) {
  std::memcpy(out, in, blocks * sizeof(float));
  return -1;
}

int64_t EncodeF16(const float* in, int64_t blocks, uint8_t* out) {
  for (int64_t i = 0; i < blocks; ++i) {
    if (!IsFiniteHalf(in[i])) return i;
    PutHalf(in[i], out + 2 * i);
  }
  return -1;
}

int64_t EncodeBF16(const float* in, int64_t blocks, uint8_t* out) {
  for (int64_t i = 0; i < blocks; ++i) {
    uint32_t bits = std::bit_cast<uint32_t>(in[i]);
    const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    // A NaN stays one, quiet; all else is rounded to nearest even.
    const uint32_t rounded = is_nan ? bits >> 16 | 64 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const auto half = static_cast<uint16_t>(rounded);
    std::memcpy(out + 2 * i, &half, sizeof(half));
  }
  return -1;
}

// The inverse of the unrounded scale; 0 where the scale is so small that there is none.
float Inverse(float d) {
  const float inverse = d == 0 ? 0 : 1 / d;
  return std::isfinite(inverse) ? inverse : 0;
}

int64_t EncodeQ8_0(const float* in, int64_t blocks, uint8_t* out) {
  for (int64_t block = 0; block < blocks; ++block, in += 32, out += 34) {
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
      finite &= std::isfinite(in[i]);
      largest = std::max(largest, std::fabs(in[i]));
    }
    const float d = largest / 127;
    if (!finite || !IsFiniteHalf(d)) return block;
    const float inverse = Inverse(d);
    PutHalf(d, out);
    for (int i = 0; i < 32; ++i) {
      // roundf(): halves away from zero. Adding 0.5 would be inexact.
      const float scaled = in[i] * inverse, magnitude = std::fabs(scaled);
      const int whole = static_cast<int>(magnitude);
      const int rounded = whole + static_cast<int>(2 * (magnitude - static_cast<float>(whole)));
      out[2 + i] = static_cast<uint8_t>(scaled < 0 ? -rounded : rounded);
    }
  }
  return -1;
}

int64_t EncodeQ4_0(const float* in, int64_t blocks, uint8_t* out) {
  for (int64_t block = 0; block < blocks; ++block, in += 32, out += 18) {
    float largest = in[0];
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
      finite &= std::isfinite(in[i]);
      if (std::fabs(in[i]) > std::fabs(largest)) largest = in[i];
    }
    const float d = largest / -8;
    if (!finite || !IsFiniteHalf(d)) return block;
    const float inverse = Inverse(d);
    PutHalf(d, out);
    const auto nibble = [&](float value) { return std::min(15, static_cast<int>(value * inverse + 8.5f)); };
    for (int i = 0; i < 16; ++i) out[2 + i] = static_cast<uint8_t>(nibble(in[i]) | nibble(in[i + 16]) << 4);
  }
  return -1;
}

struct Codec {
  void (*decode)(const uint8_t*, int64_t, float*) = nullptr;
  int64_t (*encode)(const float*, int64_t, uint8_t*) = nullptr;
};

Codec CodecOf(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return {DecodeF32, EncodeF32};
    case GgufType::kF16:
      return {DecodeF16, EncodeF16};
    case GgufType::kBF16:
      return {DecodeBF16, EncodeBF16};
    case GgufType::kQ8_0:
      return {DecodeQ8_0, EncodeQ8_0};
    case GgufType::kQ4_0:
      return {DecodeQ4_0, EncodeQ4_0};
    case GgufType::kQ4_1:
      return {DecodeQ4_1, nullptr};
    case GgufType::kQ4_K:
      return {DecodeQ4_K, nullptr};
    case GgufType::kQ6_K:
      return {DecodeQ6_K, nullptr};
    case GgufType::kMXFP4:
      return {DecodeMXFP4, nullptr};
  }
  return {};
}

}  // namespace

const GgufTypeInfo* FindGgufType(GgufType type) {
  for (const GgufTypeInfo& info : kTypes) {
    if (info.type == type) return &info;
  }
  return nullptr;
}

std::optional<GgufType> GgufTypeNamed(absl::string_view name) {
  for (const GgufTypeInfo& info : kTypes) {
    if (name == info.name) return info.type;
  }
  return std::nullopt;
}

std::string GgufTypeName(GgufType type) {
  const GgufTypeInfo* info = FindGgufType(type);
  return info == nullptr ? absl::StrCat("type ", static_cast<uint32_t>(type)) : info->name;
}

int64_t GgufRowBytes(GgufType type, int64_t columns) {
  const GgufTypeInfo* info = FindGgufType(type);
  TRIREME_CHECK(info != nullptr && columns >= 0 && columns % info->block_elements == 0, columns, " elements of ",
                GgufTypeName(type), " are not whole blocks");
  return columns / info->block_elements * info->block_bytes;
}

absl::Status GgufDequantize(GgufType type, const uint8_t* blocks, int64_t begin, int64_t end, float* out) {
  TRIREME_CHECK(0 <= begin && begin <= end, "range [", begin, ", ", end, ")");
  const Codec codec = CodecOf(type);
  if (codec.decode == nullptr) {
    return Error(ExitCode::kData, "gguf: ", GgufTypeName(type),
                 " is not decoded (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K and MXFP4 are); requantize the file to "
                 "one of these");
  }
  const int64_t size = FindGgufType(type)->block_elements, bytes = FindGgufType(type)->block_bytes;
  float block[kMaxBlock];
  while (begin < end) {
    const int64_t index = begin / size, offset = begin % size;
    const uint8_t* at = blocks + index * bytes;
    int64_t count = (end - begin) / size * size;
    if (offset == 0 && count > 0) {
      codec.decode(at, count / size, out);
    } else {
      count = std::min(size - offset, end - begin);
      codec.decode(at, 1, block);
      std::copy_n(block + offset, count, out);
    }
    out += count;
    begin += count;
  }
  return absl::OkStatus();
}

absl::Status GgufQuantize(GgufType type, const float* values, int64_t count, uint8_t* out) {
  const Codec codec = CodecOf(type);
  if (codec.encode == nullptr) {
    return Error(ExitCode::kData, "gguf: ", GgufTypeName(type),
                 " is not written; choose F32, F16, BF16, Q8_0 or Q4_0, or quantize an F32 file with llama.cpp");
  }
  const int64_t size = FindGgufType(type)->block_elements;
  TRIREME_CHECK(count % size == 0, count, " values are not whole blocks of ", GgufTypeName(type));
  const int64_t bad = codec.encode(values, count / size, out);
  if (bad < 0) return absl::OkStatus();
  const float* block = values + bad * size;
  const float* largest = std::max_element(block, block + size, [](float a, float b) {
    return std::isnan(b) ? !std::isnan(a) : std::fabs(a) < std::fabs(b);
  });
  return Error(ExitCode::kData, "gguf: element ", largest - values, " is ", *largest, ", which ", GgufTypeName(type),
               " cannot hold; write F32 or BF16, and look whether training diverged");
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  uint32_t half;
  if (magnitude > 0x7F800000) {
    half = 0x7E00;
  } else if (magnitude >= 0x47800000) {  // 65536 and more
    half = 0x7C00;
  } else if (magnitude >= 0x38800000) {  // 2^-14: normal; what rounds past 65504 carries into infinity
    half = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  } else {
    // Adding 0.5 leaves the subnormal's bits, rounded by the addition, at the low end of the fraction.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000;
  }
  return static_cast<uint16_t>(sign | half);
}

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = uint32_t{bits & 0x7FFFu} << 13;
  // The exponent's bias goes from 15 to 127 by an exact product, which also makes subnormals normal.
  uint32_t wide = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) * 0x1p112f);
  if ((bits & 0x7C00) == 0x7C00) wide |= 0x7F800000;
  return std::bit_cast<float>(sign | wide);
}

}  // namespace trireme
