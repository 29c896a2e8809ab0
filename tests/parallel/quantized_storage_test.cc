#include "parallel/sharding/quantized_storage.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/matrix/nf4.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr QuantizationFormat kFormats[] = {
    {QuantizationFormat::kNf4, true}, {QuantizationFormat::kNf4, false}, {QuantizationFormat::kInt8, true}};

// A matrix quantized as a whole, and the memory that it points into.
struct Whole {
  Whole(QuantizationFormat format, int64_t rows, int64_t columns)
      : values(TestTensors(81).Normal({rows, columns}, at::kFloat)) {
    const int64_t n = rows * columns;
    const float* data = values.const_data_ptr<float>();
    matrix.format = format;
    matrix.shape = {rows, columns};
    codes.resize(n);
    if (format.method == QuantizationFormat::kInt8) {
      matrix.absmax.resize(rows);
      AddRowAbsmax(n, data, 0, columns, matrix.absmax.data());
      QuantizeInt8Rows(n, data, 0, columns, matrix.absmax.data(), reinterpret_cast<int8_t*>(codes.data()));
    } else {
      matrix.absmax.resize(n / kNf4Block);
      QuantizeNf4(n, data, codes.data(), matrix.absmax.data());
      matrix.nested = QuantizeScales(TensorOf(matrix.absmax));
      for (size_t i = 0; i < matrix.absmax.size(); ++i)
        scale_codes.push_back(ScaleCode(matrix.nested, static_cast<int64_t>(i), matrix.absmax[i]));
    }
    matrix.codes = codes.data();
    matrix.scale_codes = scale_codes.data();
  }
  at::Tensor values;
  std::vector<uint8_t> codes, scale_codes;
  QuantizedMatrix matrix;
};

at::Tensor PartOf(const at::Tensor& whole, const Rectangle& r) {
  return whole.narrow(0, r.offset[0], r.size[0]).narrow(1, r.offset[1], r.size[1]);
}

// Fills one piece after another, as shard ranks do, and dequantizes what they gather.
template <typename Fill>
at::Tensor Gathered(const Whole& whole, const Rectangle& rectangle, int pieces, Fill&& fill) {
  constexpr int64_t kOffset = 512;  // other parameters lie before
  const int64_t numel = (kOffset + rectangle.numel() + 256 * pieces - 1) / (256 * pieces) * (256 * pieces);
  QuantizedStorage storage(whole.matrix.format, {{kOffset, rectangle, whole.matrix.shape}}, numel, pieces, at::kCPU);
  at::Tensor gathered = at::zeros({pieces * storage.piece_bytes()}, at::TensorOptions().dtype(at::kByte));
  for (int piece = 0; piece < pieces; ++piece) {
    fill(storage, piece * (numel / pieces), numel / pieces,
         gathered.narrow(0, piece * storage.piece_bytes(), storage.piece_bytes()));
  }
  at::Tensor values = at::empty({rectangle.numel()}, at::TensorOptions().dtype(at::kFloat));
  storage.Dequantize(gathered, 0, values);
  return values.view(rectangle.size);
}

TEST(QuantizedStorageTest, EveryLayoutOfAQuantizedMatrixHasItsValues) {
  for (const QuantizationFormat& format : kFormats) {
    const Whole whole(format, 96, 640);
    const at::Tensor values = DequantizeRows(whole.matrix, 0, 96);
    EXPECT_LT(RelativeError(values, whole.values), format.method == QuantizationFormat::kInt8 ? 0.01 : 0.2);
    EXPECT_TRUE(at::equal(DequantizeRows(whole.matrix, 17, 40), values.narrow(0, 17, 23)));
    // Whole, rows, columns.
    for (const Rectangle& part : {Rectangle{{0, 0}, {96, 640}}, Rectangle{{32, 0}, {32, 640}},
                                  Rectangle{{0, 320}, {96, 320}}, Rectangle{{0, 192}, {96, 64}}}) {
      for (const int pieces : {1, 2, 3, 8}) {
        const at::Tensor got =
            Gathered(whole, part, pieces, [&](QuantizedStorage& storage, int64_t begin, int64_t n, at::Tensor own) {
              storage.Take(0, begin, n, whole.matrix, own);
            });
        EXPECT_TRUE(at::equal(got, PartOf(values, part)))
            << (format.nested ? "nested " : "") << static_cast<int>(format.method) << part.ToString() << " in "
            << pieces;
      }
    }
  }
}

TEST(QuantizedStorageTest, QuantizingWhileReadingGivesTheSame) {
  for (const QuantizationFormat& format : kFormats) {
    // More than one read.
    const Whole whole(format, 1100, 1024);
    const at::Tensor values = DequantizeRows(whole.matrix, 0, 1100);
    int reads = 0;
    const Rectangle all = {{0, 0}, {1100, 1024}};
    const at::Tensor got =
        Gathered(whole, all, 1, [&](QuantizedStorage& storage, int64_t begin, int64_t n, at::Tensor own) {
          const auto read = [&](int, int64_t from, int64_t to, float* out) {
            std::copy_n(whole.values.const_data_ptr<float>() + from, to - from, out);
            ++reads;
            return absl::OkStatus();
          };
          EXPECT_TRUE(storage.Quantize(0, begin, n, ValueType::kFloat32, {}, read, own).ok());
        });
    EXPECT_TRUE(at::equal(got, values)) << static_cast<int>(format.method) << format.nested;
    EXPECT_EQ(reads, format.method == QuantizationFormat::kInt8 ? 4 : 2);
  }
}

// Any layout of blocks of 32 has what is quantized alone, and quantizing that again changes nothing.
TEST(QuantizedStorageTest, Mxfp4IsTheSameOnEveryLayoutAndAgain) {
  constexpr QuantizationFormat kMxfp4 = {QuantizationFormat::kMxfp4};
  Whole whole(kFormats[0], 1100, 992);
  whole.matrix.format = kMxfp4;
  const auto read_from = [](const at::Tensor& values, const Rectangle& r) {
    const at::Tensor part = PartOf(values, r).contiguous();
    return [part](int, int64_t from, int64_t to, float* out) {
      std::copy_n(part.const_data_ptr<float>() + from, to - from, out);
      return absl::OkStatus();
    };
  };
  const auto held = [&](const at::Tensor& values, const Rectangle& r, int pieces) {
    return Gathered(whole, r, pieces, [&](QuantizedStorage& storage, int64_t begin, int64_t n, at::Tensor own) {
      EXPECT_TRUE(storage.Quantize(0, begin, n, ValueType::kFloat32, {}, read_from(values, r), own).ok());
    });
  };
  const Rectangle all = {{0, 0}, {1100, 992}};
  const at::Tensor values = held(whole.values, all, 1);
  // Half the distance of two codes at most, which is the largest beside 6: 1 of at most 8.
  EXPECT_LT(RelativeError(values, whole.values), 0.25);
  EXPECT_TRUE(at::equal(held(values, all, 1), values));
  for (const Rectangle& part : {all, Rectangle{{32, 0}, {32, 992}}, Rectangle{{0, 320}, {1100, 320}}}) {
    for (const int pieces : {1, 2, 3, 8})
      EXPECT_TRUE(at::equal(held(whole.values, part, pieces), PartOf(values, part))) << part.ToString() << pieces;
  }
  EXPECT_TRUE(QuantizedStorage::Check(kMxfp4, {4, 96}, {{0, 0}, {4, 96}}).ok());
  EXPECT_FALSE(QuantizedStorage::Check(kMxfp4, {64, 40}, {{0, 0}, {64, 40}}).ok());
}

TEST(QuantizedStorageTest, WhatCannotBeHeldIsNamed) {
  const QuantizationFormat nf4 = kFormats[0], int8 = kFormats[2];
  EXPECT_TRUE(QuantizedStorage::Check(nf4, {96, 640}, {{0, 320}, {96, 320}}).ok());
  EXPECT_TRUE(QuantizedStorage::Check(nf4, {4, 48}, {{0, 0}, {4, 48}}).ok());
  for (const Rectangle& part : {Rectangle{{0, 0}, {96, 32}}, Rectangle{{0, 32}, {96, 64}}}) {
    const absl::Status status = QuantizedStorage::Check(nf4, {96, 640}, part);
    EXPECT_NE(status.message().find("96 x 640 matrix; use fewer tensor ranks"), absl::string_view::npos) << status;
    EXPECT_TRUE(QuantizedStorage::Check(int8, {96, 640}, part).ok());
  }
  EXPECT_FALSE(QuantizedStorage::Check(nf4, {3, 40}, {{0, 0}, {3, 40}}).ok());
  EXPECT_FALSE(QuantizedStorage::Check(nf4, {8, 40}, {{4, 0}, {4, 40}}).ok());
  EXPECT_FALSE(QuantizedStorage::Check(int8, {64}, {{0}, {64}}).ok());
}

TEST(QuantizedStorageTest, FailuresAndNumbersThatAreNotFiniteAreReturned) {
  for (const QuantizationFormat& format : kFormats) {
    QuantizedStorage storage(format, {{0, {{0, 0}, {4, 64}}, {4, 64}}}, 256, 1, at::kCPU);
    at::Tensor own = at::zeros({storage.piece_bytes()}, at::TensorOptions().dtype(at::kByte));
    const auto fails = [](int, int64_t, int64_t, float*) { return Error(ExitCode::kData, "no disk"); };
    EXPECT_EQ(storage.Quantize(0, 0, 256, ValueType::kFloat32, {}, fails, own).message(), "no disk");
    const auto infinite = [](int, int64_t from, int64_t to, float* out) {
      std::fill_n(out, to - from, std::numeric_limits<float>::infinity());
      return absl::OkStatus();
    };
    EXPECT_NE(storage.Quantize(0, 0, 256, ValueType::kFloat32, {}, infinite, own).message().find("holds numbers"),
              absl::string_view::npos);
  }
}

}  // namespace
}  // namespace trireme
