// Files that are right, and every way in which the part before the data can lie. Runs under the sanitizers too.
#include "models/formats/gguf/gguf.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <random>

#include "models/formats/gguf/gguf_writer.h"

namespace trireme {
namespace {

template <typename T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string Text(const std::string& text) { return Raw<uint64_t>(text.size()) + text; }
std::string Key(const std::string& name, uint32_t type, const std::string& value) {
  return Text(name) + Raw(type) + value;
}
std::string Array(uint32_t type, uint64_t count, const std::string& elements) {
  return Raw(type) + Raw(count) + elements;
}
// `extents` as the file has them: the row's length first.
std::string Tensor(const std::string& name, const std::vector<int64_t>& extents, uint32_t type, uint64_t offset) {
  std::string out = Text(name) + Raw(static_cast<uint32_t>(extents.size()));
  for (const int64_t extent : extents) out += Raw(extent);
  return out + Raw(type) + Raw(offset);
}
std::string File(uint64_t num_tensors, uint64_t num_keys, const std::string& rest, size_t data_bytes = 0,
                 uint32_t version = 3) {
  std::string out = "GGUF" + Raw(version) + Raw(num_tensors) + Raw(num_keys) + rest;
  if (data_bytes > 0) out.resize((out.size() + 31) / 32 * 32);
  return out + std::string(data_bytes, '\1');
}
constexpr uint32_t kU8 = 0, kU32 = 4, kBool = 7, kString = 8, kArray = 9;

class Gguf : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "gguf_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
    path_ = folder_ + "/x.gguf";
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(const std::string& bytes) {
    std::remove(path_.c_str());
    std::ofstream(path_, std::ios::binary) << bytes;
    return GgufFile::Open(path_);
  }
  // Refused as bad data, naming the file and saying `why`.
  void ExpectRefused(const std::string& bytes, const std::string& why) {
    const auto file = OpenBytes(bytes);
    ASSERT_FALSE(file.ok()) << "accepted; expected: " << why;
    EXPECT_EQ(ExitCodeOf(file.status()), ExitCode::kData);
    EXPECT_NE(file.status().message().find(path_), std::string::npos) << file.status();
    EXPECT_NE(file.status().message().find(why), std::string::npos) << file.status();
  }

  // A file with metadata of every type and tensors of several, filled with counting numbers.
  void WriteExample() {
    const GgufMetadata metadata = {{"u8", uint8_t{255}},
                                   {"i8", int8_t{-128}},
                                   {"u16", uint16_t{65535}},
                                   {"i16", int16_t{-1}},
                                   {"u32", ~uint32_t{0}},
                                   {"i32", int32_t{-5}},
                                   {"f32", 0.5f},
                                   {"bool", true},
                                   {"string", std::string("h\xC3\xA9llo")},
                                   {"u64", ~uint64_t{0}},
                                   {"i64", int64_t{-1} << 62},
                                   {"f64", 0.25},
                                   {"bools", GgufArray(std::vector<bool>{true, false, true})},
                                   {"strings", GgufArray(std::vector<std::string>{"", "a", "bc"})},
                                   {"floats", GgufArray(std::vector<float>{1.5f, -2})},
                                   {"nothing", GgufArray(std::vector<int32_t>())}};
    const std::vector<GgufTensor> tensors = {{"matrix", GgufType::kF32, {3, 5}},
                                             {"blocks", GgufType::kQ8_0, {2, 64}},
                                             {"cube", GgufType::kF16, {2, 2, 3}},
                                             {"scalar", GgufType::kBF16, {}}};
    auto writer = GgufWriter::Create(path_, metadata, tensors);
    ASSERT_TRUE(writer.ok()) << writer.status();
    while (const GgufTensor* tensor = (*writer)->current()) {
      std::vector<float> row(tensor->columns());
      for (int64_t i = 0, rows = tensor->rows(); i < rows; ++i) {
        for (size_t j = 0; j < row.size(); ++j) row[j] = static_cast<float>(i * 100 + static_cast<int64_t>(j));
        ASSERT_TRUE((*writer)->Append(row.data(), static_cast<int64_t>(row.size())).ok());
      }
    }
    const auto written = (*writer)->Close();
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(*HashFile(path_), written->digest);
  }

  std::string folder_, path_;
};

TEST_F(Gguf, RoundTrip) {
  WriteExample();
  const auto opened = GgufFile::Open(path_);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const GgufFile& file = **opened;
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.metadata().size(), 16u);
  EXPECT_EQ(*file.Integer("u8"), 255);
  EXPECT_EQ(*file.Integer("i8"), -128);
  EXPECT_EQ(*file.Integer("u16"), 65535);
  EXPECT_EQ(*file.Integer("i16"), -1);
  EXPECT_EQ(*file.Integer("u32"), 4294967295);
  EXPECT_EQ(*file.Integer("i32"), -5);
  EXPECT_EQ(*file.Integer("i64"), int64_t{-1} << 62);
  EXPECT_EQ(*file.Number("f32"), 0.5);
  EXPECT_EQ(*file.Number("f64"), 0.25);
  EXPECT_EQ(*file.String("string"), "h\xC3\xA9llo");
  EXPECT_EQ(*file.Find("bool"), GgufValue(true));
  EXPECT_EQ(*file.Find("u64"), GgufValue(~uint64_t{0}));
  EXPECT_EQ(*file.Find("bools"), GgufValue(GgufArray(std::vector<bool>{true, false, true})));
  EXPECT_EQ(*file.Find("strings"), GgufValue(GgufArray(std::vector<std::string>{"", "a", "bc"})));
  EXPECT_EQ(*file.Find("floats"), GgufValue(GgufArray(std::vector<float>{1.5f, -2})));
  EXPECT_EQ(*file.Find("nothing"), GgufValue(GgufArray(std::vector<int32_t>())));
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.FindTensor("matrix")->shape, (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(file.FindTensor("cube")->shape, (std::vector<int64_t>{2, 2, 3}));
  EXPECT_EQ(file.FindTensor("scalar")->shape, std::vector<int64_t>());
  EXPECT_EQ(file.FindTensor("none"), nullptr);
  for (const GgufTensor& tensor : file.tensors()) EXPECT_EQ(tensor.begin % 32, 0u) << tensor.name;
  float values[6];
  ASSERT_TRUE(file.Read(*file.FindTensor("matrix"), 1, 3, 2, 5, values).ok());
  EXPECT_EQ(std::vector<float>(values, values + 6), (std::vector<float>{102, 103, 104, 202, 203, 204}));
  ASSERT_TRUE(file.Read(*file.FindTensor("cube"), 3, 4, 0, 3, values).ok());
  EXPECT_EQ(std::vector<float>(values, values + 3), (std::vector<float>{300, 301, 302}));
  ASSERT_TRUE(file.Read(*file.FindTensor("blocks"), 1, 2, 31, 33, values).ok());
  EXPECT_NEAR(values[0], 131, 0.6) << "half a step of 131 / 127, and the scale's rounding";
  EXPECT_NEAR(values[1], 132, 0.7);
}

TEST_F(Gguf, LookUpsSayWhatIsWrong) {
  WriteExample();
  const auto opened = GgufFile::Open(path_);
  ASSERT_TRUE(opened.ok());
  const GgufFile& file = **opened;
  EXPECT_EQ(*file.Integer("none", 7), 7);
  EXPECT_EQ(*file.Number("none", 7.5), 7.5);
  EXPECT_EQ(*file.String("none", "x"), "x");
  EXPECT_EQ(*file.Number("i32"), -5.0);
  for (const absl::Status& status :
       {file.Integer("none").status(), file.Number("none").status(), file.String("none").status()})
    EXPECT_NE(status.message().find("has no none"), std::string::npos) << status;
  for (const char* key : {"f32", "bool", "string", "strings", "u64"})
    EXPECT_EQ(ExitCodeOf(file.Integer(key, 1).status()), ExitCode::kData) << key;
  EXPECT_FALSE(file.Number("string").ok());
  EXPECT_FALSE(file.String("u8").ok());
}

TEST_F(Gguf, Version2AndAMissingLastPadding) {
  const auto file = OpenBytes(File(1, 0, Tensor("a", {3}, 0, 0), 12, 2));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->version(), 2u);
  EXPECT_TRUE(OpenBytes(File(1, 0, Tensor("a", {3}, 0, 0), 32)).ok()) << "padded";
  EXPECT_TRUE(OpenBytes(File(0, 0, "")).ok()) << "empty";
}

TEST_F(Gguf, AlignmentIsWhatTheFileSays) {
  const std::string two = Tensor("a", {1}, 0, 0) + Tensor("b", {1}, 0, 64);
  const std::string header = File(2, 1, Key("general.alignment", kU32, Raw<uint32_t>(64)) + two);
  const size_t data_begin = (header.size() + 63) / 64 * 64;
  std::string bytes = header;
  bytes.resize(data_begin + 64 + 4);
  const auto file = OpenBytes(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->FindTensor("b")->begin, data_begin + 64);
  for (const uint32_t alignment : {0u, 3u, 48u, 1u << 31})
    ExpectRefused(File(0, 1, Key("general.alignment", kU32, Raw(alignment))), "general.alignment is not");
  ExpectRefused(File(0, 1, Key("general.alignment", kString, Text("32"))), "general.alignment is not");
}

TEST_F(Gguf, NotAGgufFile) {
  ExpectRefused("", "does not begin as a GGUF file");
  ExpectRefused("GGUF", "does not begin as a GGUF file");
  ExpectRefused("GGML" + std::string(100, '\0'), "does not begin as a GGUF file");
  EXPECT_FALSE(GgufFile::Open(folder_ + "/none").ok());
}

TEST_F(Gguf, OtherVersions) {
  ExpectRefused(File(0, 0, "", 0, 1), "version 1 is not read");
  ExpectRefused(File(0, 0, "", 0, 4), "version 4 is not read");
  ExpectRefused(File(0, 0, "", 0, 3u << 24), "a big-endian file");
}

TEST_F(Gguf, CountsLargerThanTheFile) {
  ExpectRefused(File(~uint64_t{0}, 0, ""), "claims 18446744073709551615 tensors");
  ExpectRefused(File(0, ~uint64_t{0}, ""), "claims 18446744073709551615 keys");
  ExpectRefused(File(1 << 19, 0, std::string(1000, '\0')), "claims 524288 tensors");
  ExpectRefused(File(0, 100, std::string(1000, '\0')), "claims 100 keys");
  ExpectRefused(File(0, 1, Raw(~uint64_t{0}) + std::string(20, 'x')), "the name of key 0 needs 18446744073709551615");
  ExpectRefused(File(0, 1, Key("k", kString, Raw(~uint64_t{0} - 7))), "key \"k\" needs");
  ExpectRefused(File(0, 1, Key("k", kArray, Array(kU8, 1 << 20, "xx"))), "key \"k\" claims 1048576 elements");
  ExpectRefused(File(0, 1, Key("k", kArray, Array(kU32, uint64_t{1} << 62, ""))), "has 4611686018427387904 elements");
  ExpectRefused(File(0, 1, Key("k", kArray, Array(kString, 3, std::string(20, '\0')))), "claims 3 elements");
}

TEST_F(Gguf, ValuesOfTheWrongForm) {
  ExpectRefused(File(0, 1, Key("k", 13, Raw<uint64_t>(0))), "key \"k\" has unknown type 13");
  ExpectRefused(File(0, 1, Key("k", kArray, Array(77, 0, ""))), "an array of unknown type 77");
  ExpectRefused(File(0, 1, Key("k", kBool, "\2")), "key \"k\" is a bool of value 2");
  ExpectRefused(File(0, 1, Key("k", kArray, Array(kBool, 2, "\1\3"))), "a bool of value 3");
  ExpectRefused(File(0, 1, Key("", kU8, "\1")), "has a name of 0 bytes");
  ExpectRefused(File(0, 1, Key(std::string(65536, 'k'), kU8, "\1")), "has a name of 65536 bytes");
}

TEST_F(Gguf, NestedArrays) {
  ExpectRefused(File(0, 1, Key("k", kArray, Array(kArray, 1, Array(kU8, 1, "x")))), "is an array of arrays");
  std::string deep;
  for (int depth = 0; depth < 100'000; ++depth) deep += Array(kArray, 1, "");
  ExpectRefused(File(0, 1, Key("k", kArray, deep)), "is an array of arrays");
}

TEST_F(Gguf, Duplicates) {
  ExpectRefused(File(0, 2, Key("k", kU8, "1") + Key("k", kU32, "1234")), "key \"k\" stands twice");
  ExpectRefused(File(2, 0, Tensor("a", {1}, 0, 0) + Tensor("a", {1}, 0, 32), 64), "tensor \"a\" stands twice");
}

TEST_F(Gguf, NamesInMessagesAreMadeHarmless) {
  ExpectRefused(File(0, 1, Key("a\x1B[2J\n", 99, "")), "key \"a?[2J?\"");
  ExpectRefused(File(0, 1, Key(std::string(60000, 'k'), 99, "")), std::string(80, 'k') + "...\" has unknown type");
}

TEST_F(Gguf, NamesAreUtf8) {
  for (const char* bad : {"\xFF", "a\xC0\x80", "\xED\xA0\x80"}) {
    ExpectRefused(File(0, 1, Key(bad, kU8, "1")), "key 0 has a name that is not UTF-8");
    ExpectRefused(File(1, 0, Tensor(bad, {1}, 0, 0), 4), "has a name that is not UTF-8");
  }
  EXPECT_TRUE(OpenBytes(File(0, 1, Key("\xC3\xA9", kU8, "1"))).ok());
}

TEST_F(Gguf, KeysThatPythonUsesItself) {
  ExpectRefused(File(0, 1, Key("GGUF.version", kU32, Raw(uint32_t{3}))), "names the header's own fields");
}

TEST_F(Gguf, TensorsOfTheWrongForm) {
  ExpectRefused(File(1, 0, Tensor("", {1}, 0, 0), 32), "has a name of 0 bytes");
  ExpectRefused(File(1, 0, Tensor(std::string(65, 'n'), {1}, 0, 0), 32), "has a name of 65 bytes");
  ExpectRefused(File(1, 0, Tensor("a", {1, 1, 1, 1, 1}, 0, 0), 32), "has 5 dimensions");
  ExpectRefused(File(1, 0, Tensor("a", {0}, 0, 0), 32), "has extent 0");
  ExpectRefused(File(1, 0, Tensor("a", {4, -1}, 0, 0), 32), "has extent -1");
  ExpectRefused(File(1, 0, Tensor("a", {1}, 77, 0), 32), "has unknown type 77");
  ExpectRefused(File(1, 0, Tensor("a", {4}, 4, 0), 32), "has unknown type 4");  // Q4_2, retired.
  ExpectRefused(File(1, 0, Tensor("a", {33}, 8, 0), 64), "not whole blocks of Q8_0 (32)");
  ExpectRefused(File(1, 0, Tensor("a", {128, 2}, 12, 0), 144), "not whole blocks of Q4_K (256)");
}

TEST_F(Gguf, Overflow) {
  ExpectRefused(File(1, 0, Tensor("a", {int64_t{1} << 62}, 0, 0), 32), "a shape that overflows");
  ExpectRefused(File(1, 0, Tensor("a", {int64_t{1} << 32, int64_t{1} << 32}, 0, 0), 32), "a shape that overflows");
  ExpectRefused(File(1, 0, Tensor("a", {1 << 16, 1 << 16, 1 << 16, 1 << 16}, 0, 0), 32), "a shape that overflows");
  ExpectRefused(File(1, 0, Tensor("a", {int64_t{1} << 60}, 28, 0), 32), "ends at byte");
  ExpectRefused(File(1, 0, Tensor("a", {1}, 0, ~uint64_t{0}), 32), "begins at byte 18446744073709551615");
  ExpectRefused(File(1, 0, Tensor("a", {int64_t{1} << 60}, 28, ~uint64_t{0} - 31), 32), "begins at byte");
}

TEST_F(Gguf, OverlapsHolesAndMisalignment) {
  const std::string a = Tensor("a", {4}, 0, 0);
  for (const uint64_t offset : {0, 16, 33, 64})
    ExpectRefused(File(2, 0, a + Tensor("b", {4}, 0, offset), 128), "a hole, an overlap or a wrong alignment");
  ExpectRefused(File(1, 0, Tensor("a", {4}, 0, 32), 64), "a hole, an overlap");
  EXPECT_TRUE(OpenBytes(File(2, 0, a + Tensor("b", {4}, 0, 32), 48)).ok());
}

TEST_F(Gguf, DataThatEndsEarlyOrLate) {
  ExpectRefused(File(1, 0, Tensor("a", {4}, 0, 0), 15), "it is truncated");
  ExpectRefused(File(1, 0, Tensor("a", {4}, 0, 0)), "it is truncated");
  ExpectRefused(File(1, 0, Tensor("a", {4}, 0, 0), 33), "1 bytes follow the last tensor");
}

TEST_F(Gguf, TruncatedAnywhere) {
  WriteExample();
  const absl::StatusOr<std::string> whole = ReadFile(path_);
  ASSERT_TRUE(whole.ok());
  // The last tensor is one BF16 number and its padding.
  for (size_t size = 0; size < whole->size() - 30; ++size)
    ASSERT_FALSE(OpenBytes(whole->substr(0, size)).ok()) << size << " of " << whole->size() << " bytes";
}

// Whatever happens to the bytes, the reader says yes with everything in range, or no; it never crashes.
TEST_F(Gguf, RandomDamage) {
  WriteExample();
  const absl::StatusOr<std::string> whole = ReadFile(path_);
  ASSERT_TRUE(whole.ok());
  std::mt19937 generator(3);
  int accepted = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = *whole;
    for (uint32_t changes = 1 + generator() % 3; changes > 0; --changes)
      bytes[generator() % bytes.size()] = static_cast<char>(generator() % 4 == 0 ? generator() : generator() % 13);
    const auto file = OpenBytes(bytes);
    if (!file.ok()) continue;
    ++accepted;
    for (const GgufTensor& tensor : (*file)->tensors()) {
      ASSERT_LE(tensor.end, bytes.size());
      std::vector<float> values(tensor.rows() * tensor.columns());
      (*file)->Read(tensor, 0, tensor.rows(), 0, tensor.columns(), values.data()).IgnoreError();
    }
  }
  EXPECT_GT(accepted, 0) << "damage to values is not seen here";
  EXPECT_LT(accepted, 2000);
}

TEST_F(Gguf, FilesAppearOnlyWhenWhole) {
  const std::vector<GgufTensor> tensors = {{"a", GgufType::kF32, {2}}};
  {
    const auto writer = GgufWriter::Create(path_, {}, tensors);
    ASSERT_TRUE(writer.ok());
    EXPECT_TRUE(std::ifstream(path_ + ".tmp").good());
    EXPECT_FALSE(std::ifstream(path_).good());
  }
  EXPECT_FALSE(std::ifstream(path_).good());
  EXPECT_FALSE(std::ifstream(path_ + ".tmp").good()) << "what was begun is removed";
  const float values[2] = {1, 2};
  const auto writer = GgufWriter::Create(path_, {}, tensors);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Append(values, 1).ok());
  ASSERT_TRUE((*writer)->Append(values + 1, 1).ok());
  ASSERT_TRUE((*writer)->Close().ok());
  EXPECT_TRUE(GgufFile::Open(path_).ok());
  EXPECT_FALSE(std::ifstream(path_ + ".tmp").good());
}

TEST_F(Gguf, WriterSaysWhereAValueDoesNotFit) {
  const auto writer = GgufWriter::Create(path_, {}, {{"a", GgufType::kF16, {2}}});
  ASSERT_TRUE(writer.ok());
  const float values[2] = {1, 1e6f};
  const absl::Status status = (*writer)->Append(values, 2);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("tensor a"), std::string::npos) << status;
  EXPECT_NE(status.message().find("element 1 is 1e+06, which F16 cannot hold"), std::string::npos) << status;
}

TEST_F(Gguf, WriterChecksItsCaller) {
  const float values[4] = {};
  const GgufTensor a = {"a", GgufType::kF32, {2}};
  EXPECT_DEATH((void)GgufWriter::Create(path_, {}, {a, a}), "tensor name");
  EXPECT_DEATH((void)GgufWriter::Create(path_, {{"k", true}, {"k", true}}, {}), "key k");
  EXPECT_DEATH((void)GgufWriter::Create(path_, {}, {{std::string(64, 'n'), GgufType::kF32, {2}}}), "tensor name");
  EXPECT_DEATH((void)GgufWriter::Create(path_, {}, {{"a", GgufType::kF32, {0}}}), "shape of a");
  EXPECT_DEATH((void)(*GgufWriter::Create(path_, {}, {a}))->Append(values, 3), "too much for tensor a");
  EXPECT_DEATH((void)(*GgufWriter::Create(path_, {}, {a}))->Close(), "not complete");
}

}  // namespace
}  // namespace trireme
