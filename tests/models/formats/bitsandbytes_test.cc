// Quantized matrices as bitsandbytes stores them, and files that are almost such.
#include "models/formats/hf/bitsandbytes.h"

#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

std::string Floats(size_t n, float first) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = first + static_cast<float>(i);
  return std::string(reinterpret_cast<const char*>(values.data()), n * sizeof(float));
}

std::string State(const Json& change = {}) {
  Json state = {{"quant_type", "nf4"},     {"blocksize", 64},           {"dtype", "bfloat16"},  {"shape", {8, 128}},
                {"nested_blocksize", 256}, {"nested_dtype", "float32"}, {"nested_offset", 0.25}};
  if (!change.is_null()) state.update(change);
  return state.dump();
}

Tensors Nf4(const std::string& state = State()) {
  return {
      {"a.weight", {"U8", {512, 1}, std::string(512, '\x7f')}},
      {"a.weight.absmax", {"U8", {16}, std::string(16, '\x80')}},
      {"a.weight.nested_absmax", {"F32", {1}, Floats(1, 3)}},
      {"a.weight.nested_quant_map", {"F32", {256}, Floats(256, 0)}},
      {"a.weight.quant_map", {"F32", {16}, std::string(reinterpret_cast<const char*>(kNf4Codes), sizeof(kNf4Codes))}},
      {"a.weight.quant_state.bitsandbytes__nf4", {"U8", {static_cast<int64_t>(state.size())}, state}},
      {"b.bias", {"F32", {2}, Floats(2, 0)}}};
}

Tensors Int8() {
  return {{"a.weight", {"I8", {3, 5}, std::string(15, '\xfe')}},
          {"a.SCB", {"F32", {3}, Floats(3, 1)}},
          {"a.weight_format", {"U8", {}, std::string(1, '\0')}}};
}

class BitsandbytesTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "bitsandbytes_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  absl::StatusOr<BnbTensors> Read(const Tensors& tensors) {
    TRIREME_CHECK(RemoveAll(folder_).ok() && MakeDirectories(folder_).ok());
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : tensors) entries.push_back({name, tensor.dtype, tensor.shape});
    const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) {
      const std::string& bytes = tensors.at(entry.name).bytes;
      return writer.Append(bytes.data(), bytes.size());
    };
    TRIREME_CHECK(WriteSafetensors(absl::StrCat(folder_, "/", kHfWeightsName), entries, {}, produce).ok());
    absl::StatusOr<HfDirectory> opened = HfDirectory::Open(folder_);
    TRIREME_CHECK(opened.ok(), opened.status().message());
    directories_.push_back(std::make_unique<HfDirectory>(*std::move(opened)));
    return ReadBnbTensors(*directories_.back());
  }
  void ExpectRefused(const Tensors& tensors, const std::string& reason) {
    const absl::StatusOr<BnbTensors> read = Read(tensors);
    ASSERT_FALSE(read.ok()) << "accepted; expected: " << reason;
    EXPECT_EQ(ExitCodeOf(read.status()), ExitCode::kData);
    EXPECT_NE(read.status().message().find(reason), std::string::npos) << read.status();
  }

  std::string folder_;
  std::vector<std::unique_ptr<HfDirectory>> directories_;
};

TEST_F(BitsandbytesTest, NestedNf4) {
  const absl::StatusOr<BnbTensors> read = Read(Nf4());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->parts.size(), 6u);
  const QuantizedMatrix& matrix = read->matrices.at("a.weight");
  EXPECT_EQ(NameOf(matrix.format), "NF4 with double quantization");
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{8, 128}));
  EXPECT_EQ(matrix.codes[511], 0x7f);
  EXPECT_EQ(matrix.scale_codes[15], 0x80);
  EXPECT_EQ(matrix.nested.offset, 0.25f);
  EXPECT_EQ(matrix.nested.absmax, std::vector<float>{3});
  EXPECT_EQ(matrix.nested.map[200], 200);
  EXPECT_EQ(matrix.type, ValueType::kBfloat16);
}

TEST_F(BitsandbytesTest, PlainScalesAndRows) {
  Json state = Json::parse(State());
  for (const char* key : {"nested_blocksize", "nested_dtype", "nested_offset"}) state.erase(key);
  Tensors tensors = Nf4(state.dump());
  tensors.erase("a.weight.nested_absmax");
  tensors.erase("a.weight.nested_quant_map");
  tensors["a.weight.absmax"] = {"F32", {16}, Floats(16, 5)};
  const absl::StatusOr<BnbTensors> nf4 = Read(tensors);
  ASSERT_TRUE(nf4.ok()) << nf4.status();
  EXPECT_EQ(NameOf(nf4->matrices.at("a.weight").format), "NF4");
  EXPECT_EQ(nf4->matrices.at("a.weight").absmax[15], 20);

  const absl::StatusOr<BnbTensors> int8 = Read(Int8());
  ASSERT_TRUE(int8.ok()) << int8.status();
  EXPECT_EQ(NameOf(int8->matrices.at("a.weight").format), "INT8");
  EXPECT_EQ(int8->matrices.at("a.weight").absmax, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(int8->parts.size(), 3u);

  tensors = {{"b.bias", {"F32", {2}, Floats(2, 0)}}};
  const absl::StatusOr<BnbTensors> none = Read(tensors);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_TRUE(none->matrices.empty() && none->parts.empty());
}

TEST_F(BitsandbytesTest, OtherVariantsAreNamed) {
  const std::pair<Json, const char*> cases[] = {
      {{{"quant_type", "fp4"}}, "quant_type: \"fp4\" is not supported"},
      {{{"blocksize", 128}}, "blocksize: 128 is not supported"},
      {{{"nested_blocksize", 64}}, "nested_blocksize: 64 is not supported"},
      {{{"dtype", "float64"}}, "dtype: \"float64\" is not supported"},
      {{{"nested_offset", "x"}}, "nested_offset: \"x\" is not a number"},
      {{{"shape", {8}}}, "shape: is not that of a matrix"},
      {{{"shape", {8, -128}}}, "shape: is not that of a matrix"},
      {{{"shape", {8, 1e30}}}, "shape: is not that of a matrix"},
      {{{"shape", {2147483647, 2147483647}}}, "no whole blocks of 64"},
      {{{"shape", {2147483584, 2147483584}}}, "a.weight is U8 of 512 bytes"},
      {{{"shape", {9, 128}}}, "a.weight is U8 of 512 bytes; the matrix needs 576 bytes"},
      {{{"shape", {3, 33}}}, "a.weight has 99 elements, no whole blocks of 64"},
  };
  for (const auto& [change, reason] : cases) ExpectRefused(Nf4(State(change)), reason);
  ExpectRefused(Nf4("{"), "a.weight.quant_state.bitsandbytes__nf4");
  ExpectRefused(Nf4(std::string(70000, ' ')), "is no text of a few hundred bytes");
  Tensors fp4 = Nf4();
  fp4["a.weight.quant_state.bitsandbytes__fp4"] = fp4["a.weight.quant_state.bitsandbytes__nf4"];
  ExpectRefused(fp4, "is FP4");
}

TEST_F(BitsandbytesTest, MissingAndMisshapenPartsAreNamed) {
  for (const auto& [name, tensor] : Nf4()) {
    if (name == "b.bias" || name == "a.weight.quant_state.bitsandbytes__nf4") continue;
    Tensors without = Nf4(), small = Nf4();
    without.erase(name);
    ExpectRefused(without, name + " is missing");
    small[name] = {"U8", {4}, "1234"};
    ExpectRefused(small, name + " is U8 of 4 bytes");
  }
  Tensors map = Nf4();
  map["a.weight.quant_map"].bytes[5] ^= 1;
  ExpectRefused(map, "a.weight.quant_map is another than NF4's");

  Tensors rows = Int8();
  rows["a.weight_format"].bytes = "\1";
  ExpectRefused(rows, "a.weight_format is 1; only 0 (rows) is supported");
  rows = Int8();
  rows["a.weight"] = {"I8", {15}, std::string(15, '\0')};
  ExpectRefused(rows, "a.weight is no matrix");
  rows = Int8();
  rows["a.SCB"] = {"F32", {4}, Floats(4, 0)};
  ExpectRefused(rows, "a.SCB is F32 of 16 bytes; the matrix needs 3 elements of F32");
  rows = Int8();
  rows.erase("a.weight");
  ExpectRefused(rows, "a.weight is missing");
}

TEST_F(BitsandbytesTest, WhatWeWriteIsReadBack) {
  const std::string state = BnbQuantState({8, 128}, "bfloat16", 0.25f);
  EXPECT_EQ(state,
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [8, 128], "
            "\"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.25}");
  // The shortest digits, as Python writes them.
  for (const auto& [offset, digits] : {std::pair(0.39575153589248657f, "0.3957515358924866}"), {2.0f, ": 2.0}"}})
    EXPECT_TRUE(absl::EndsWith(BnbQuantState({8, 128}, "float32", offset), digits)) << digits;
  const Tensors expected = Nf4(state);
  const std::vector<SafetensorsEntry> entries = BnbNf4Entries("a.weight", {8, 128}, state);
  ASSERT_EQ(entries.size(), 6u);
  for (const SafetensorsEntry& entry : entries) {
    EXPECT_EQ(entry.dtype, expected.at(entry.name).dtype) << entry.name;
    EXPECT_EQ(entry.shape, expected.at(entry.name).shape) << entry.name;
  }
  for (const bool four : {true, false}) {
    QuantizationConfig config, again;
    config.set_method(four ? QuantizationConfig::NF4 : QuantizationConfig::INT8);
    if (four) config.set_double_quantization(false);
    config.add_skip_modules("lm_head");
    config.add_skip_modules("o_proj");
    std::vector<std::string> problems;
    ReadBnbConfig(WriteBnbConfig(config, "float32"), &again, &problems);
    EXPECT_TRUE(problems.empty()) << problems[0];
    EXPECT_EQ(again.DebugString(), config.DebugString());
  }
}

TEST_F(BitsandbytesTest, ConfigsThatCannotBeFollowed) {
  const std::pair<Json, const char*> cases[] = {
      {{{"quant_method", "gptq"}}, "quant_method: \"gptq\" is not supported"},
      {{{"quant_method", "bitsandbytes"}}, "neither or both of load_in_4bit and load_in_8bit"},
      {{{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}}, "bnb_4bit_quant_type: \"fp4\" is not supported"},
      {{{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}, {"llm_int8_skip_modules", "null"}},
       "llm_int8_skip_modules: \"null\" is no list of names"},
      {{{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}, {"llm_int8_skip_modules", {1}}},
       "llm_int8_skip_modules: [1] is no list of names"},
  };
  for (const auto& [json, reason] : cases) {
    QuantizationConfig config;
    std::vector<std::string> problems;
    ReadBnbConfig(json, &config, &problems);
    ASSERT_FALSE(problems.empty()) << reason;
    EXPECT_NE(problems[0].find(reason), std::string::npos) << problems[0];
  }
}

}  // namespace
}  // namespace trireme
