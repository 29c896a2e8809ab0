// Blocks whose values are worked out by hand from the format, and ranges that cut blocks. tests/oracle/gguf_oracle.py
// compares with the reference on many more.
#include "models/formats/gguf/gguf_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace trireme {
namespace {

std::vector<float> Decode(GgufType type, const std::vector<uint8_t>& bytes, int64_t begin, int64_t end) {
  std::vector<float> values(end - begin);
  const absl::Status status = GgufDequantize(type, bytes.data(), begin, end, values.data());
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

std::vector<uint8_t> Encode(GgufType type, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(GgufRowBytes(type, static_cast<int64_t>(values.size())));
  const absl::Status status = GgufQuantize(type, values.data(), static_cast<int64_t>(values.size()), bytes.data());
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

// Little-endian half precision numbers: 0x3C00 is 1, 0x4000 is 2, 0x3800 is 0.5.
void PutHalf(uint16_t bits, std::vector<uint8_t>* bytes) {
  bytes->push_back(bits & 255);
  bytes->push_back(bits >> 8);
}

TEST(GgufHalf, EveryHalfSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    const float value = HalfToFloat(bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), bits);
    }
  }
}

TEST(GgufHalf, KnownValues) {
  EXPECT_EQ(HalfToFloat(0x3C00), 1.0f);
  EXPECT_EQ(HalfToFloat(0xC000), -2.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0x7BFF), 65504.0f);
  EXPECT_EQ(HalfToFloat(0x7C00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::signbit(HalfToFloat(0x8000)));
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7C00) << "half way to 65536";
  EXPECT_EQ(FloatToHalf(1 + 0x1p-11f), 0x3C00) << "ties to even, down";
  EXPECT_EQ(FloatToHalf(1 + 3 * 0x1p-11f), 0x3C02) << "ties to even, up";
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0x0000) << "half the smallest subnormal";
  EXPECT_EQ(FloatToHalf(3 * 0x1p-25f), 0x0002);
}

TEST(GgufBlocks, Q8_0IsScaleTimesSignedByte) {
  std::vector<uint8_t> block;
  PutHalf(0x3800, &block);
  for (int i = 0; i < 32; ++i) block.push_back(static_cast<uint8_t>(i - 16));
  const std::vector<float> values = Decode(GgufType::kQ8_0, block, 0, 32);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(values[i], (i - 16) * 0.5f);
}

TEST(GgufBlocks, Q4_0HoldsTheSecondHalfInHighNibbles) {
  std::vector<uint8_t> block;
  PutHalf(0x4000, &block);
  for (int i = 0; i < 16; ++i) block.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  const std::vector<float> values = Decode(GgufType::kQ4_0, block, 0, 32);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], (i - 8) * 2.0f);
    EXPECT_EQ(values[i + 16], (15 - i - 8) * 2.0f);
  }
}

TEST(GgufBlocks, Q4_1AddsAMinimum) {
  std::vector<uint8_t> block;
  PutHalf(0x4000, &block);
  PutHalf(0xBC00, &block);
  for (int i = 0; i < 16; ++i) block.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  const std::vector<float> values = Decode(GgufType::kQ4_1, block, 0, 32);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], i * 2.0f - 1);
    EXPECT_EQ(values[i + 16], (15 - i) * 2.0f - 1);
  }
}

TEST(GgufBlocks, Q4_KHasASixBitScaleAndMinimumForEvery32) {
  // Scales 1, 2, 3, 4, 17, 34, 51, 63 and minima 5, 6, 7, 8, 63, 33, 18, 1, packed as the format says.
  const int scales[] = {1, 2, 3, 4, 17, 34, 51, 63}, minima[] = {5, 6, 7, 8, 63, 33, 18, 1};
  std::vector<uint8_t> block;
  PutHalf(0x3C00, &block);
  PutHalf(0x3800, &block);
  for (int i = 0; i < 4; ++i) block.push_back(static_cast<uint8_t>(scales[i] | (scales[i + 4] >> 4) << 6));
  for (int i = 0; i < 4; ++i) block.push_back(static_cast<uint8_t>(minima[i] | (minima[i + 4] >> 4) << 6));
  for (int i = 0; i < 4; ++i) block.push_back(static_cast<uint8_t>((scales[i + 4] & 15) | (minima[i + 4] & 15) << 4));
  for (int i = 0; i < 128; ++i) block.push_back(static_cast<uint8_t>(i % 16 | (15 - i % 16) << 4));
  ASSERT_EQ(block.size(), 144u);
  const std::vector<float> values = Decode(GgufType::kQ4_K, block, 0, 256);
  for (int i = 0; i < 256; ++i) {
    const int group = i / 32, nibble = group % 2 == 0 ? i % 16 : 15 - i % 16;
    EXPECT_EQ(values[i], scales[group] * nibble - minima[group] * 0.5f) << i;
  }
}

TEST(GgufBlocks, Q6_KPutsTwoHighBitsOnEveryNibble) {
  // Element i is (i * 7) % 64 - 32, with a scale for every 16.
  std::vector<uint8_t> block(210);
  for (int i = 0; i < 256; ++i) {
    const int q = i * 7 % 64, half = i / 128, in_half = i % 128, quarter = in_half / 32;
    block[half * 64 + quarter % 2 * 32 + i % 32] |= static_cast<uint8_t>((q & 15) << quarter / 2 * 4);
    block[128 + half * 32 + i % 32] |= static_cast<uint8_t>((q >> 4) << quarter * 2);
  }
  for (int i = 0; i < 16; ++i) block[192 + i] = static_cast<uint8_t>(i * 17 - 128);
  block[208] = 0x00;
  block[209] = 0x38;
  const std::vector<float> values = Decode(GgufType::kQ6_K, block, 0, 256);
  for (int i = 0; i < 256; ++i) {
    const int scale = i / 16 * 17 - 128, element = i * 7 % 64 - 32;
    EXPECT_EQ(values[i], 0.5f * static_cast<float>(scale * element)) << i;
  }
}

TEST(GgufBlocks, MXFP4HasAPowerOfTwoAndTwoElementsInAByte) {
  std::vector<uint8_t> block(17, 0x71);  // low nibble: element i is 0.5, high one: element i + 16 is 6
  block[0] = 129;
  block[1] = 0x9F;
  const std::vector<float> values = Decode(GgufType::kMXFP4, block, 0, 32);
  for (int i = 1; i < 16; ++i) {
    EXPECT_EQ(values[i], 2.0f) << i;
    EXPECT_EQ(values[i + 16], 24.0f) << i;
  }
  EXPECT_EQ(values[0], -24.0f);
  EXPECT_EQ(values[16], -2.0f);
}

TEST(GgufBlocks, AnyRangeEqualsThatPartOfTheWhole) {
  std::mt19937 generator(1);
  for (const GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0, GgufType::kQ4_0,
                              GgufType::kQ4_1, GgufType::kQ4_K, GgufType::kQ6_K, GgufType::kMXFP4}) {
    std::vector<uint8_t> bytes(GgufRowBytes(type, 1024));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
    const std::vector<float> whole = Decode(type, bytes, 0, 1024);
    for (int round = 0; round < 200; ++round) {
      const int begin = static_cast<int>(generator() % 1024);
      const int end = begin + 1 + static_cast<int>(generator() % (1024 - begin));
      const std::vector<float> part = Decode(type, bytes, begin, end);
      // Bits, as random bytes make NaNs.
      ASSERT_EQ(std::memcmp(part.data(), whole.data() + begin, part.size() * sizeof(float)), 0)
          << GgufTypeName(type) << " [" << begin << ", " << end << ")";
    }
  }
}

TEST(GgufBlocks, EncodingRoundsAsTheReferenceDoes) {
  std::vector<float> values(32);
  values[0] = 127;
  values[1] = 0.5f;  // Halves go away from zero,
  values[2] = -0.5f;
  values[3] = 0.49999997f;  // and what is less does not.
  values[4] = -127;
  std::vector<uint8_t> expected = {0x00, 0x3C, 127, 1, 255, 0, 129};
  expected.resize(34);
  EXPECT_EQ(Encode(GgufType::kQ8_0, values), expected);

  // The scale takes the sign that lets the largest value be -8; +8 is cut to 7.
  values.assign(32, 0);
  values[0] = 8;
  values[16] = -8;
  values[1] = 0.5f;
  std::vector<uint8_t> nibbles(18, 0x88);
  nibbles[0] = 0x00;
  nibbles[1] = 0xBC;
  nibbles[2] = 0xF0;
  EXPECT_EQ(Encode(GgufType::kQ4_0, values), nibbles);
}

TEST(GgufBlocks, ZerosStayZeros) {
  for (const GgufType type : {GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0, GgufType::kQ4_0}) {
    const std::vector<float> zeros(64, 0.0f);
    for (const float value : Decode(type, Encode(type, zeros), 0, 64)) EXPECT_EQ(value, 0) << GgufTypeName(type);
  }
}

TEST(GgufBlocks, TinyValuesThatHaveNoScaleBecomeZeros) {
  for (const GgufType type : {GgufType::kQ8_0, GgufType::kQ4_0}) {
    const std::vector<float> tiny(32, std::numeric_limits<float>::denorm_min());
    for (const float value : Decode(type, Encode(type, tiny), 0, 32)) EXPECT_EQ(value, 0) << GgufTypeName(type);
  }
}

TEST(GgufBlocks, QuantizedValuesStayWithinHalfAStep) {
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(3200);
  for (float& value : values) value = normal(generator);
  // Steps are at most the largest of a block (below 5) over 127 or 8. Half a step, and for Q4_0 a whole one on the side
  // that is cut; 1 % for the scale's rounding to 16 bits.
  const std::pair<GgufType, float> bounds[] = {{GgufType::kQ8_0, 5.0f / 127 * 0.51f},
                                               {GgufType::kQ4_0, 5.0f / 8 * 1.01f}};
  for (const auto& [type, bound] : bounds) {
    const std::vector<float> decoded = Decode(type, Encode(type, values), 0, 3200);
    for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(decoded[i], values[i], bound) << GgufTypeName(type);
  }
}

TEST(GgufBlocks, ValuesThatDoNotFitAreNamed) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<uint8_t> out(256);
  for (const GgufType type : {GgufType::kF16, GgufType::kQ8_0, GgufType::kQ4_0}) {
    for (const float bad : {inf, -inf, nan, 3e38f}) {
      std::vector<float> values(64, 1.0f);
      values[37] = bad;
      const absl::Status status = GgufQuantize(type, values.data(), 64, out.data());
      ASSERT_FALSE(status.ok()) << GgufTypeName(type) << " holds " << bad;
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
      EXPECT_NE(status.message().find("element 37 is "), std::string::npos) << status;
    }
  }
  const std::vector<float> values = {inf, nan, 3e38f};
  EXPECT_TRUE(GgufQuantize(GgufType::kBF16, values.data(), 3, out.data()).ok());
  EXPECT_TRUE(GgufQuantize(GgufType::kF32, values.data(), 3, out.data()).ok());
}

TEST(GgufBlocks, TypesWithoutCodecAreRefused) {
  const GgufType q5_k = *GgufTypeNamed("Q5_K");
  uint8_t bytes[256] = {};
  float values[256] = {};
  const absl::Status decoded = GgufDequantize(q5_k, bytes, 0, 256, values);
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.message().find("Q5_K is not decoded"), std::string::npos) << decoded;
  EXPECT_FALSE(GgufDequantize(static_cast<GgufType>(77), bytes, 0, 1, values).ok());
  const absl::Status encoded = GgufQuantize(GgufType::kQ4_K, values, 256, bytes);
  ASSERT_FALSE(encoded.ok());
  EXPECT_NE(encoded.message().find("Q4_K is not written"), std::string::npos) << encoded;
}

TEST(GgufBlocks, RowsAreWholeBlocks) {
  EXPECT_EQ(GgufRowBytes(GgufType::kQ8_0, 64), 68);
  EXPECT_EQ(GgufRowBytes(GgufType::kQ4_K, 512), 288);
  EXPECT_EQ(GgufRowBytes(GgufType::kF16, 3), 6);
  EXPECT_DEATH(GgufRowBytes(GgufType::kQ8_0, 33), "not whole blocks");
}

}  // namespace
}  // namespace trireme
