#include "kernels/matrix/nf4.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/loops.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Quantized Quantize(const at::Tensor& x) {
  Quantized q = {std::vector<uint8_t>(x.numel() / 2), std::vector<float>(x.numel() / kNf4Block)};
  EXPECT_TRUE(QuantizeNf4(x.numel(), x.const_data_ptr<float>(), q.packed.data(), q.absmax.data()));
  return q;
}

// Weights as they are, and blocks that are special: zeros, a lone value, midpoints between codes, tiny and huge ones.
at::Tensor Weights(int64_t blocks, at::ScalarType stored) {
  at::Tensor x = TestTensors(71).Normal({blocks * kNf4Block}, at::kFloat, 0.02).to(stored).to(at::kFloat);
  float* data = x.mutable_data_ptr<float>();
  std::fill(data, data + kNf4Block, 0.0f);
  std::fill(data + kNf4Block, data + 2 * kNf4Block - 1, 0.0f);
  for (int i = 0; i < 15; ++i) data[2 * kNf4Block + i] = (kNf4Codes[i] + kNf4Codes[i + 1]) / 2;
  data[2 * kNf4Block + 20] = 1;
  for (int i = 0; i < kNf4Block; ++i) data[3 * kNf4Block + i] *= 1e-30f;
  for (int i = 0; i < kNf4Block; ++i) data[4 * kNf4Block + i] *= 1e30f;
  return x;
}

TEST(Nf4, CodesAndScalesAreThoseOfTheReference) {
  for (const at::ScalarType stored : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = Weights(1500, stored);
    const Quantized q = Quantize(x);
    const reference::Nf4 expected = reference::QuantizeNf4(x);
    const uint8_t* codes = expected.codes.const_data_ptr<uint8_t>();
    for (size_t i = 0; i < q.packed.size(); ++i) ASSERT_EQ(q.packed[i], codes[2 * i] << 4 | codes[2 * i + 1]) << i;
    EXPECT_TRUE(at::equal(TensorOf(q.absmax), expected.absmax));
  }
}

TEST(Nf4, ValuesAreTheReferencesRoundedOnce) {
  const at::Tensor x = Weights(1500, at::kFloat);
  const Quantized q = Quantize(x);
  const at::Tensor expected = reference::DequantizeNf4(reference::QuantizeNf4(x));
  Nf4Blocks blocks;
  blocks.packed = q.packed.data();
  blocks.absmax = q.absmax.data();
  blocks.blocks = static_cast<int64_t>(q.absmax.size());
  blocks.row_blocks = blocks.row_stride = blocks.blocks;
  at::Tensor values = at::empty({x.numel()}, at::TensorOptions().dtype(at::kFloat));
  DequantizeNf4(blocks, values);
  EXPECT_TRUE(at::equal(values, expected));
  for (const auto& [type, dtype] :
       {std::pair(ValueType::kBfloat16, at::kBFloat16), std::pair(ValueType::kFloat16, at::kHalf)}) {
    blocks.type = type;
    DequantizeNf4(blocks, values);
    EXPECT_TRUE(at::equal(values, expected.to(dtype).to(at::kFloat))) << static_cast<int>(type);
  }
  at::Tensor narrow = at::empty({x.numel()}, at::TensorOptions().dtype(at::kBFloat16));
  blocks.type = ValueType::kBfloat16;
  DequantizeNf4(blocks, narrow);
  EXPECT_TRUE(at::equal(narrow, expected.to(at::kBFloat16)));
}

TEST(Nf4, EveryInstructionSetLooksUpTheSame) {
  const Quantized q = Quantize(Weights(64, at::kFloat));
  std::vector<float> portable(64 * kNf4Block), best(64 * kNf4Block);
  PortableLoops().f32.nf4_dequantize(64, q.packed.data(), q.absmax.data(), ValueType::kFloat32, portable.data());
  Loops().f32.nf4_dequantize(64, q.packed.data(), q.absmax.data(), ValueType::kFloat32, best.data());
  EXPECT_EQ(portable, best);
  std::vector<uint8_t> packed(q.packed.size());
  std::vector<float> absmax(64);
  const at::Tensor x = Weights(64, at::kFloat);
  PortableLoops().nf4_quantize(64, x.const_data_ptr<float>(), packed.data(), absmax.data());
  EXPECT_EQ(packed, q.packed);
}

TEST(Nf4, NumbersThatAreNotFiniteAreRefused) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    at::Tensor x = Weights(8, at::kFloat);
    x.mutable_data_ptr<float>()[300] = bad;
    std::vector<uint8_t> packed(x.numel() / 2);
    std::vector<float> absmax(8);
    EXPECT_FALSE(QuantizeNf4(x.numel(), x.const_data_ptr<float>(), packed.data(), absmax.data()));
  }
}

TEST(SignedDynamicMapTest, HasTheKnownValues) {
  const std::array<float, 256>& map = SignedDynamicMap();
  EXPECT_TRUE(std::is_sorted(map.begin(), map.end()));
  EXPECT_FLOAT_EQ(map[0], -0.992968738f);
  EXPECT_EQ(map[127], 0);
  EXPECT_FLOAT_EQ(map[128], 5.5e-7f);
  EXPECT_FLOAT_EQ(map[254], 0.992968738f);
  EXPECT_EQ(map[255], 1);
}

// A rank that holds columns [128, 256) of rows of 320, and starts in the middle of a row.
TEST(Nf4, NestedScalesAreFoundByTheBlockNumberInTheWholeMatrix) {
  const int64_t rows = 300, row_blocks = 5, held = 2, first_column = 2, skip = 3, blocks = rows * held - skip;
  TestTensors random(72);
  const at::Tensor absmax = random.Normal({rows * row_blocks}, at::kFloat).abs();
  const NestedScales nested = QuantizeScales(absmax);
  EXPECT_EQ(nested.offset, at::mean(absmax).item<float>());
  ASSERT_EQ(nested.absmax.size(), (rows * row_blocks + 255) / 256);
  std::vector<uint8_t> codes;
  at::Tensor expected = at::empty({blocks, kNf4Block}, at::TensorOptions().dtype(at::kFloat));
  double worst = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t number = (skip + i) / held * row_blocks + first_column + (skip + i) % held;
    const float scale = absmax.const_data_ptr<float>()[number];
    codes.push_back(ScaleCode(nested, number, scale));
    const volatile float product = nested.map[codes.back()] * nested.absmax[number / 256];
    const float restored = product + nested.offset;
    worst = std::max(worst, std::abs(static_cast<double>(restored) - scale) / nested.absmax[number / 256]);
    expected.select(0, i).fill_(restored);
  }
  EXPECT_LT(worst, 0.008);                                          // half the largest step of the map
  const std::vector<uint8_t> packed(blocks * kNf4Block / 2, 0xFF);  // ones
  Nf4Blocks b;
  b.packed = packed.data();
  b.codes = codes.data();
  b.nested_map = nested.map.data();
  b.nested_absmax = nested.absmax.data();
  b.nested_offset = nested.offset;
  b.blocks = blocks;
  b.first_block = first_column;
  b.skip = skip;
  b.row_blocks = held;
  b.row_stride = row_blocks;
  at::Tensor values = at::empty({blocks, kNf4Block}, at::TensorOptions().dtype(at::kFloat));
  DequantizeNf4(b, values.view({-1}));
  EXPECT_TRUE(at::equal(values, expected));
}

TEST(Int8Rows, AreThoseOfBitsandbytes) {
  const int64_t rows = 37, columns = 200;
  TestTensors random(73);
  at::Tensor x = random.Normal({rows, columns}, at::kFloat, 0.02);
  x.select(0, 5).zero_();
  std::vector<float> absmax(rows);
  // In two pieces that meet within a row.
  const int64_t cut = 1234, n = x.numel();
  const float* data = x.const_data_ptr<float>();
  EXPECT_TRUE(AddRowAbsmax(cut, data, 0, columns, absmax.data()));
  EXPECT_TRUE(AddRowAbsmax(n - cut, data + cut, cut, columns, absmax.data()));
  const at::Tensor half = x.to(at::kHalf).to(at::kFloat), expected_absmax = half.abs().amax(1);
  EXPECT_TRUE(at::equal(TensorOf(absmax), expected_absmax));
  at::Tensor codes = at::empty({n}, at::TensorOptions().dtype(at::kChar));
  QuantizeInt8Rows(cut, data, 0, columns, absmax.data(), codes.mutable_data_ptr<int8_t>());
  QuantizeInt8Rows(n - cut, data + cut, cut, columns, absmax.data(), codes.mutable_data_ptr<int8_t>() + cut);
  at::Tensor scale = 127.0 / expected_absmax;
  scale.select(0, 5).zero_();
  const at::Tensor expected = (half * scale.view({-1, 1})).round().to(at::kChar);
  EXPECT_TRUE(at::equal(codes.view({rows, columns}), expected));

  const at::Tensor wanted = expected.to(at::kFloat) * expected_absmax.view({-1, 1}) * 7.874015718698502e-3;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    at::Tensor values = at::empty({n - 77}, at::TensorOptions().dtype(dtype));
    Int8Rows part;
    part.codes = codes.const_data_ptr<int8_t>() + 77;
    part.absmax = absmax.data();
    part.n = n - 77;
    part.first = 77;
    part.columns = columns;
    DequantizeInt8Rows(part, values);
    EXPECT_TRUE(at::equal(values, wanted.view({-1}).narrow(0, 77, n - 77).to(dtype))) << DtypeName(dtype);
  }
}

// Every code with every scale but those whose values are no normal numbers: what was MXFP4 stays what it was.
TEST(Mxfp4, ItsOwnValuesStayToTheBit) {
  TestTensors random(73);
  for (int scale = 3; scale <= 251; ++scale) {
    std::vector<float> x(16 * kMxfp4Block);
    for (size_t i = 0; i < x.size(); ++i) {
      // Blocks with and without large codes: the exponent they are given differs.
      const int64_t below = 1 + static_cast<int64_t>(i) / kMxfp4Block % 8;
      x[i] = kMxfp4Codes[random.Below(below) + 8 * random.Below(2)] * Mxfp4Scale(static_cast<uint8_t>(scale));
    }
    std::vector<uint8_t> packed(x.size() / 2), scales(x.size() / kMxfp4Block);
    ASSERT_TRUE(QuantizeMxfp4(static_cast<int64_t>(x.size()), x.data(), packed.data(), scales.data()));
    at::Tensor back = at::empty({static_cast<int64_t>(x.size())}, at::TensorOptions().dtype(at::kFloat));
    DequantizeMxfp4({packed.data(), scales.data(), static_cast<int64_t>(scales.size())}, back);
    EXPECT_EQ(std::memcmp(back.const_data_ptr(), x.data(), x.size() * sizeof(float)), 0) << scale;
  }
}

TEST(Mxfp4, TheNearestCodeTiesToEven) {
  std::vector<float> x(kMxfp4Block, 0.0f);
  const std::vector<std::pair<float, float>> rounded = {{6, 6},     {7.9f, 6},  {5, 4},          {5.01f, 6},
                                                        {3.5f, 4},  {2.5f, 2},  {1.75f, 2},      {1.25f, 1},
                                                        {0.75f, 1}, {0.25f, 0}, {-0.26f, -0.5f}, {-5, -4}};
  for (size_t i = 0; i < rounded.size(); ++i) x[i] = rounded[i].first / 64;
  std::vector<uint8_t> packed(kMxfp4Block / 2), scales(1);
  ASSERT_TRUE(QuantizeMxfp4(kMxfp4Block, x.data(), packed.data(), scales.data()));
  EXPECT_EQ(scales[0], 127 - 6);
  at::Tensor back = at::empty({kMxfp4Block}, at::TensorOptions().dtype(at::kFloat));
  DequantizeMxfp4({packed.data(), scales.data(), 1}, back);
  for (size_t i = 0; i < rounded.size(); ++i)
    EXPECT_EQ(back[static_cast<int64_t>(i)].item<float>(), rounded[i].second / 64) << rounded[i].first;
  x[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(QuantizeMxfp4(kMxfp4Block, x.data(), packed.data(), scales.data()));
}

}  // namespace
}  // namespace trireme
