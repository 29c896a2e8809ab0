// Files that are right, and every way in which a header can lie. Runs under the sanitizers too.
#include "models/formats/base/safetensors.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace trireme {
namespace {

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "safetensors_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
    path_ = folder_ + "/x.safetensors";
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  static std::string Length(uint64_t size) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(size >> (8 * i)));
    return bytes;
  }

  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(const std::string& bytes) {
    std::remove(path_.c_str());  // A new file is not flushed to disk as an overwritten one may be.
    std::ofstream(path_, std::ios::binary) << bytes;
    return SafetensorsFile::Open(path_);
  }
  // A file of this header and so many bytes of data.
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenHeader(const std::string& header, size_t data_bytes) {
    return OpenBytes(Length(header.size()) + header + std::string(data_bytes, '\1'));
  }
  // Refused as bad data, naming the file and saying `why`.
  void ExpectRefused(const absl::StatusOr<std::unique_ptr<SafetensorsFile>>& file, const std::string& why) {
    ASSERT_FALSE(file.ok()) << "accepted; expected: " << why;
    EXPECT_EQ(ExitCodeOf(file.status()), ExitCode::kData);
    EXPECT_NE(file.status().message().find(path_), std::string::npos) << file.status();
    EXPECT_NE(file.status().message().find(why), std::string::npos) << file.status();
  }
  void ExpectHeaderRefused(const std::string& header, size_t data_bytes, const std::string& why) {
    SCOPED_TRACE(header.substr(0, 200));
    ExpectRefused(OpenHeader(header, data_bytes), why);
  }

  // Writes tensors of the given entries, each filled with its index.
  absl::StatusOr<SafetensorsWritten> Write(const std::vector<SafetensorsEntry>& entries,
                                           const std::map<std::string, std::string>& metadata = {}) {
    char index = 0;
    return WriteSafetensors(path_, entries, metadata, [&](const SafetensorsEntry& entry, FileWriter& writer) {
      size_t bytes = SafetensorsElementSize(entry.dtype);
      for (const int64_t extent : entry.shape) bytes *= extent;
      const std::string data(bytes, index++);
      return writer.Append(data.data(), data.size());
    });
  }

  std::string folder_, path_;
};

TEST_F(Safetensors, RoundTrip) {
  const absl::StatusOr<SafetensorsWritten> written = Write(
      {{"b", "F32", {2, 3}}, {"a", "BF16", {5}}, {"scalar", "F64", {}}, {"empty", "I64", {0, 7}}, {"last", "U8", {1}}},
      {{"format", "pt"}, {"note", "\"quoted\" \xC3\xA9"}});
  ASSERT_TRUE(written.ok()) << written.status();
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("note"), "\"quoted\" \xC3\xA9");
  ASSERT_EQ((*file)->entries().size(), 5u);
  std::map<std::string, SafetensorsEntry> entries;
  for (const SafetensorsEntry& entry : (*file)->entries()) entries[entry.name] = entry;
  EXPECT_EQ(entries["b"].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(entries["b"].end - entries["b"].begin, 24u);
  EXPECT_EQ(entries["b"].begin % 8, 0u) << "tensors begin aligned";
  EXPECT_EQ(entries["a"].dtype, "BF16");
  EXPECT_EQ((*file)->data(entries["a"])[9], 1);
  EXPECT_EQ((*file)->data(entries["scalar"])[7], 2);
  EXPECT_EQ((*file)->data(entries["last"])[0], 4);
  EXPECT_EQ(entries["empty"].begin, entries["empty"].end);
  EXPECT_EQ(entries["last"].end, written->bytes);
  const absl::StatusOr<Digest> digest = HashFile(path_);
  ASSERT_TRUE(digest.ok());
  EXPECT_EQ(*digest, written->digest);
}

TEST_F(Safetensors, NoTensorsAtAll) {
  ASSERT_TRUE(Write({}).ok());
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->entries().empty());
}

TEST_F(Safetensors, HeadersInAnyOrderAreReadInTheOrderOfTheirBytes) {
  const auto file = OpenHeader(R"({"z":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},)"
                               R"("y":{"data_offsets":[0,1],"shape":[1],"dtype":"I8"}}   )",
                               3);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->entries()[0].name, "y");
  EXPECT_EQ((*file)->entries()[1].name, "z");
}

TEST_F(Safetensors, MissingFile) { EXPECT_FALSE(SafetensorsFile::Open(folder_ + "/none").ok()); }

TEST_F(Safetensors, TooShortForALength) {
  ExpectRefused(OpenBytes(""), "too few");
  ExpectRefused(OpenBytes("1234567"), "too few");
}

TEST_F(Safetensors, HeaderLargerThanTheFileOrTheLimit) {
  ExpectRefused(OpenBytes(Length(3) + "{}"), "claims 3 bytes");
  ExpectRefused(OpenBytes(Length(~uint64_t{0}) + "{}"), "claims 18446744073709551615 bytes");
  ExpectRefused(OpenBytes(Length(~uint64_t{0} - 7) + "{}"), "claims");  // 8 + length wraps around.
  ExpectRefused(OpenBytes(Length(100'000'001) + "{}"), "claims");
}

TEST_F(Safetensors, NotAnObject) {
  ExpectHeaderRefused("", 0, "does not begin with '{'");
  ExpectHeaderRefused("[]", 0, "does not begin with '{'");
  ExpectHeaderRefused(" {}", 0, "does not begin with '{'");
  ExpectHeaderRefused("{", 0, "not a JSON object");
  ExpectHeaderRefused("{}}", 0, "not a JSON object");
  ExpectHeaderRefused("{\"a\":nul}", 0, "not a JSON object");
  ExpectHeaderRefused(std::string("{\"\xFF\xFE\":{}}"), 0, "not a JSON object");  // Not UTF-8.
}

TEST_F(Safetensors, NothingHidesBehindAZeroByte) {
  ExpectHeaderRefused(std::string("{}\0\0", 4), 0, "zero byte");
  ExpectHeaderRefused(std::string("{}\0{\"a\":1}", 10), 0, "zero byte");
}

TEST_F(Safetensors, Truncated) {
  ASSERT_TRUE(Write({{"a", "F32", {4}}, {"b", "F32", {4}}}).ok());
  const absl::StatusOr<std::string> whole = ReadFile(path_);
  ASSERT_TRUE(whole.ok());
  for (size_t size = 0; size < whole->size(); ++size)
    ASSERT_FALSE(OpenBytes(whole->substr(0, size)).ok()) << size << " of " << whole->size() << " bytes";
  ExpectRefused(OpenBytes(whole->substr(0, whole->size() - 1)), "truncated");
  ExpectRefused(OpenBytes(*whole + "x"), "damaged");
}

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":", offsets,
                      "}");
}

TEST_F(Safetensors, OverlapsAndHoles) {
  const std::string a = Tensor("a", "U8", "[4]", "[0,4]");
  ExpectHeaderRefused("{" + a + "," + Tensor("b", "U8", "[4]", "[2,6]") + "}", 6, "a hole or an overlap");
  ExpectHeaderRefused("{" + a + "," + Tensor("b", "U8", "[4]", "[0,4]") + "}", 4, "a hole or an overlap");
  ExpectHeaderRefused("{" + a + "," + Tensor("b", "U8", "[4]", "[5,9]") + "}", 9, "a hole or an overlap");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[4]", "[1,5]") + "}", 5, "a hole or an overlap");
  ExpectHeaderRefused("{" + a + "}", 5, "take 4 bytes, the file has 5");
  ExpectHeaderRefused("{}", 1, "take 0 bytes");
}

TEST_F(Safetensors, DuplicateKeys) {
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[1]", "[0,1]") + "," + Tensor("a", "U8", "[1]", "[1,2]") + "}", 2,
                      "names \"a\" twice");
  ExpectHeaderRefused(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1,
                      "names \"dtype\" twice");
  ExpectHeaderRefused(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "names \"k\" twice");
  ExpectHeaderRefused(R"({"__metadata__":{},"__metadata__":{}})", 0, "twice");
}

TEST_F(Safetensors, SameKeyInDifferentObjectsIsFine) {
  const std::string two = Tensor("a", "U8", "[1]", "[0,1]") + "," + Tensor("dtype", "U8", "[1]", "[1,2]");
  EXPECT_TRUE(OpenHeader("{" + two + "}", 2).ok());
}

TEST_F(Safetensors, DtypesAndRanges) {
  ExpectHeaderRefused("{" + Tensor("a", "F31", "[1]", "[0,4]") + "}", 4, "unknown dtype \"F31\"");
  ExpectHeaderRefused("{" + Tensor("a", "", "[1]", "[0,4]") + "}", 4, "unknown dtype");
  ExpectHeaderRefused(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1, "unknown dtype 7");
  ExpectHeaderRefused("{" + Tensor("a", "F32", "[2]", "[0,4]") + "}", 4, "needs 8 bytes by its shape");
  ExpectHeaderRefused("{" + Tensor("a", "BF16", "[2]", "[0,8]") + "}", 8, "needs 4 bytes by its shape");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[1]", "[1,0]") + "}", 1, "needs 1 bytes by its shape");
}

TEST_F(Safetensors, EntriesOfTheWrongForm) {
  for (const std::string value : {"7", "[]", "null", "\"x\"", "{}", R"({"dtype":"U8","shape":[1]})"})
    ExpectHeaderRefused("{\"a\":" + value + "}", 1, "does not have exactly dtype, shape and data_offsets");
  ExpectHeaderRefused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}})", 1, "exactly");
  for (const std::string shape : {"1", "[-1]", "[1.0]", "[true]", "[[1]]", "{}", "null", "[1e0]"})
    ExpectHeaderRefused("{" + Tensor("a", "U8", shape, "[0,1]") + "}", 1, "a shape that is not a list of sizes");
  for (const std::string offsets : {"0", "[]", "[0]", "[0,1,1]", "[-1,0]", "[0,1.0]", "[null,1]"})
    ExpectHeaderRefused("{" + Tensor("a", "U8", "[1]", offsets) + "}", 1, "no two data_offsets");
  ExpectHeaderRefused(R"({"__metadata__":7})", 0, "__metadata__ is not an object");
  ExpectHeaderRefused(R"({"__metadata__":{"k":7}})", 0, "\"k\" is not a string");
}

TEST_F(Safetensors, Overflow) {
  ExpectHeaderRefused("{" + Tensor("a", "F32", "[4611686018427387904]", "[0,0]") + "}", 0, "overflows");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[4294967296,4294967296]", "[0,0]") + "}", 0, "overflows");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[18446744073709551615]", "[0,1]") + "}", 1, "overflows");
  // Too large for 64 bits: no longer an integer.
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[18446744073709551616]", "[0,1]") + "}", 1, "not a list of sizes");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[1]", "[18446744073709551615,18446744073709551615]") + "}", 1,
                      "needs 1");
  ExpectHeaderRefused("{" + Tensor("a", "U8", "[1]", "[18446744073709551614,18446744073709551615]") + "}", 1,
                      "a hole or an overlap");
}

TEST_F(Safetensors, DeepNesting) {
  ExpectHeaderRefused("{\"a\":" + std::string(2'000'000, '[') + std::string(2'000'000, ']') + "}", 0,
                      "nested too deeply");
  std::string objects = "{";
  for (int i = 0; i < 200'000; ++i) objects += "\"a\":{";
  ExpectHeaderRefused(objects, 0, "nested too deeply");
}

// Whatever happens to a header's bytes, the reader says yes with everything in range, or no; it never crashes.
TEST_F(Safetensors, RandomDamage) {
  ASSERT_TRUE(Write({{"model.a", "F32", {2, 3}}, {"model.b", "BF16", {5}}}, {{"format", "pt"}}).ok());
  const absl::StatusOr<std::string> whole = ReadFile(path_);
  ASSERT_TRUE(whole.ok());
  std::mt19937 generator(3);
  int accepted = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string bytes = *whole;
    for (uint32_t changes = 1 + generator() % 3; changes > 0; --changes) {
      const size_t at = generator() % bytes.size();
      if (generator() % 2 == 0) {
        bytes[at] = static_cast<char>(generator());
      } else {
        bytes[at] = "{}[]\",:0129-e"[generator() % 13];
      }
    }
    const auto file = OpenBytes(bytes);
    if (!file.ok()) continue;
    ++accepted;
    for (const SafetensorsEntry& entry : (*file)->entries()) {
      ASSERT_LE(entry.begin, entry.end);
      ASSERT_LE(entry.end, bytes.size());
    }
  }
  EXPECT_GT(accepted, 0) << "damage to values is not seen here";
  EXPECT_LT(accepted, 1000);
}

TEST_F(Safetensors, WriterKeepsFilesWholeWhenProducingFails) {
  const auto produce = [](const SafetensorsEntry&, FileWriter&) { return Error(ExitCode::kStorage, "no more"); };
  const auto written = WriteSafetensors(path_, {{"a", "F32", {2}}}, {}, produce);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(ExitCodeOf(written.status()), ExitCode::kStorage);
  EXPECT_FALSE(SafetensorsFile::Open(path_).ok()) << "half a file reads as a whole one";
}

TEST_F(Safetensors, WriterChecksItsCaller) {
  const auto nothing = [](const SafetensorsEntry&, FileWriter&) { return absl::OkStatus(); };
  EXPECT_DEATH((void)WriteSafetensors(path_, {{"a", "F32", {2}}}, {}, nothing), "wrong size");
  EXPECT_DEATH((void)WriteSafetensors(path_, {{"a", "F32", {0}}, {"a", "F32", {0}}}, {}, nothing), "twice");
}

TEST(SafetensorsElementSize, KnowsTheFormatsDtypes) {
  for (const auto& [dtype, size] : std::map<std::string, int>{{"BOOL", 1},
                                                              {"F8_E4M3", 1},
                                                              {"F16", 2},
                                                              {"BF16", 2},
                                                              {"F32", 4},
                                                              {"I64", 8},
                                                              {"F64", 8},
                                                              {"F4", 0},
                                                              {"", 0}})
    EXPECT_EQ(SafetensorsElementSize(dtype), size) << dtype;
}

}  // namespace
}  // namespace trireme
