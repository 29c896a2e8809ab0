// Matrices with a scale for each block, and files that are almost such.
#include "models/formats/hf/packed.h"

#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"

namespace trireme {
namespace {

struct Stored {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Files = std::map<std::string, Stored>;

std::string Numbers(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

// Two experts of one row of 64 numbers; the codes of a byte are 1 (0.5) and 15 (-6).
Files Mxfp4() {
  return {{"x_blocks", {"U8", {2, 1, 2, 16}, std::string(64, '\xf1')}},
          {"x_scales", {"U8", {2, 1, 2}, std::string("\x7f\x80\x7e\x7f", 4)}}};
}
// 3 x 5 in blocks of 2 x 4; the code of one is 0x38.
Files Fp8() {
  return {{"a.weight", {"F8_E4M3", {3, 5}, std::string(15, '\x38')}},
          {"a.weight_scale_inv", {"F32", {2, 2}, Numbers({1, 2, 3, 4})}}};
}

class PackedTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "packed_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  absl::StatusOr<PackedTensors> Read(const Files& files, const std::string& block_size = "[2, 4]") {
    TRIREME_CHECK(RemoveAll(folder_).ok() && MakeDirectories(folder_).ok());
    const std::string config =
        absl::StrCat("{\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": ", block_size, "}}");
    TRIREME_CHECK(WriteFileAtomically(absl::StrCat(folder_, "/", kHfConfigName), config).ok());
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, stored] : files) entries.push_back({name, stored.dtype, stored.shape});
    const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) {
      const std::string& bytes = files.at(entry.name).bytes;
      return writer.Append(bytes.data(), bytes.size());
    };
    TRIREME_CHECK(WriteSafetensors(absl::StrCat(folder_, "/", kHfWeightsName), entries, {}, produce).ok());
    absl::StatusOr<HfDirectory> opened = HfDirectory::Open(folder_);
    TRIREME_CHECK(opened.ok(), opened.status().message());
    directories_.push_back(std::make_unique<HfDirectory>(*std::move(opened)));
    return ReadPackedTensors(*directories_.back());
  }
  void ExpectRefused(const absl::StatusOr<PackedTensors>& read, const std::string& reason) {
    ASSERT_FALSE(read.ok()) << reason;
    EXPECT_TRUE(absl::StrContains(read.status().message(), reason)) << read.status().message();
  }

  std::string folder_;
  std::vector<std::unique_ptr<HfDirectory>> directories_;
};

TEST_F(PackedTest, Mxfp4IsACodeTimesThePowerOfItsBlock) {
  const absl::StatusOr<PackedTensors> read = Read(Mxfp4());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->parts, (std::set<std::string>{"x_blocks", "x_scales"}));
  const PackedMatrix& matrix = read->matrices.at("x_blocks");
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{2, 1, 64}));
  std::vector<float> row(64);
  Unpack(matrix, 0, 1, 0, 64, row.data());
  EXPECT_EQ(row[0], 0.5f);
  EXPECT_EQ(row[31], -6.0f);
  EXPECT_EQ(row[32], 1.0f);
  EXPECT_EQ(row[63], -12.0f);
  std::vector<float> part(4);
  Unpack(matrix, 0, 2, 31, 2, part.data());
  EXPECT_EQ(part, (std::vector<float>{-6, 1, -3, 0.5f}));
}

TEST_F(PackedTest, Fp8IsACodeTimesTheScaleOfItsBlock) {
  Files files = Fp8();
  files["a.weight"].bytes[14] = '\xff';
  files["a.weight"].bytes[13] = '\x01';
  const absl::StatusOr<PackedTensors> read = Read(files);
  ASSERT_TRUE(read.ok()) << read.status();
  std::vector<float> all(15);
  Unpack(read->matrices.at("a.weight"), 0, 3, 0, 5, all.data());
  EXPECT_EQ((std::vector<float>(all.begin(), all.begin() + 13)),
            (std::vector<float>{1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 3, 3, 3}));
  EXPECT_EQ(all[13], 3 * 0x1p-9f);
  EXPECT_TRUE(std::isnan(all[14]));
}

TEST_F(PackedTest, WhatIsAlmostSuchIsRefusedByName) {
  Files files = Mxfp4();
  files.erase("x_scales");
  ExpectRefused(Read(files), "x_scales is missing, which x_blocks needs");
  files = Mxfp4();
  files["x_scales"] = {"U8", {2, 2}, std::string(4, '\x7f')};
  ExpectRefused(Read(files), "x_scales is U8 [2, 2]; x_blocks needs U8 [2, 1, 2]");
  files = Mxfp4();
  files["x_blocks"].shape = {2, 32};
  ExpectRefused(Read(files), "x_blocks is U8 [2, 32]");
  files = Fp8();
  files.erase("a.weight");
  ExpectRefused(Read(files), "a.weight is missing, though a.weight_scale_inv is there");
  files = Fp8();
  files["a.weight_scale_inv"] = {"F32", {1, 2}, Numbers({1, 2})};
  ExpectRefused(Read(files), "a.weight_scale_inv is F32 [1, 2]; blocks of 2 x 4 need F32 or BF16 [2, 2]");
  for (const char* size : {"null", "128", "[0, 4]", "[2]", "[9223372036854775807, 4]", "[2, 4.5]"})
    ExpectRefused(Read(Fp8(), size), "quantization_config.weight_block_size");
}

TEST_F(PackedTest, SettingsThatChangeTheNumbersAreRefused) {
  const auto problems = [](const nlohmann::json& config) {
    std::vector<std::string> found;
    EXPECT_TRUE(IsPackedConfig(config, &found));
    return found.size();
  };
  EXPECT_EQ(problems({{"quant_method", "mxfp4"}}), 0u);
  EXPECT_EQ(problems({{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}}), 0u);
  EXPECT_EQ(problems({{"quant_method", "fp8"}, {"expert_dtype", "fp4"}}), 1u);
  EXPECT_EQ(problems({{"quant_method", "fp8"}, {"scale_fmt", "ue8m0"}}), 1u);
  std::vector<std::string> none;
  EXPECT_FALSE(IsPackedConfig({{"quant_method", "bitsandbytes"}}, &none));
}

}  // namespace
}  // namespace trireme
