#include "data/corpus/indexed_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "data/corpus/llmc_file.h"
#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

const Documents kDocuments = {{1, 2, 3}, {4}, {5, 6, 7, 8}, {9, 10}};

std::vector<int32_t> StartsIn(const TokenStream& stream, int64_t begin, int64_t count) {
  std::vector<int32_t> starts = {-1};  // What was there must go.
  EXPECT_TRUE(stream.DocumentStarts(begin, count, &starts).ok());
  return starts;
}

template <typename T>
void Append(T value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// An .idx built from the format's description, not by our writer.
std::string MakeIndex(uint8_t type, const std::vector<int32_t>& lengths, const std::vector<int64_t>& pointers,
                      const std::vector<int64_t>& document_indices) {
  std::string bytes("MMIDIDX\0\0", 9);
  Append<uint64_t>(1, &bytes);
  Append<uint8_t>(type, &bytes);
  Append<uint64_t>(lengths.size(), &bytes);
  Append<uint64_t>(document_indices.size(), &bytes);
  for (const int32_t length : lengths) Append(length, &bytes);
  for (const int64_t pointer : pointers) Append(pointer, &bytes);
  for (const int64_t index : document_indices) Append(index, &bytes);
  return bytes;
}

TEST(IndexedFile, WritesTheFormatByteForByte) {
  TempFolder folder;
  WriteIndexed(folder / "a", kDocuments, /*vocab_size=*/65499);
  EXPECT_EQ(ReadText(folder / "a.idx"), MakeIndex(8, {3, 1, 4, 2}, {0, 6, 8, 16}, {0, 1, 2, 3, 4}));
  EXPECT_EQ(ReadText(folder / "a.bin"), std::string("\1\0\2\0\3\0\4\0\5\0\6\0\7\0\10\0\11\0\12\0", 20));
  WriteIndexed(folder / "wide", kDocuments, /*vocab_size=*/65500);
  EXPECT_EQ(ReadText(folder / "wide.idx"), MakeIndex(4, {3, 1, 4, 2}, {0, 12, 16, 32}, {0, 1, 2, 3, 4}));
  EXPECT_EQ(std::filesystem::file_size(folder / "wide.bin"), 40u);
}

TEST(IndexedFile, ReadsWhatItWrote) {
  TempFolder folder;
  for (const int64_t vocab_size : {1000, 100000}) {
    WriteIndexed(folder / "a", kDocuments, vocab_size);
    const auto file = IndexedFile::Open(folder / "a", vocab_size).value();
    EXPECT_EQ(file->num_documents(), 4);
    EXPECT_EQ(ReadAll(*file), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
    std::vector<int64_t> part(3);
    EXPECT_TRUE(file->Read(4, 3, part.data()).ok());
    EXPECT_EQ(part, (std::vector<int64_t>{5, 6, 7}));
  }
}

TEST(IndexedFile, DocumentStartsLieStrictlyInside) {
  TempFolder folder;
  WriteIndexed(folder / "a", kDocuments);  // They start at 0, 3, 4, 8.
  const auto file = IndexedFile::Open(folder / "a", 0).value();
  EXPECT_EQ(StartsIn(*file, 0, 10), (std::vector<int32_t>{3, 4, 8}));
  EXPECT_EQ(StartsIn(*file, 3, 5), (std::vector<int32_t>{1}));
  EXPECT_EQ(StartsIn(*file, 3, 6), (std::vector<int32_t>{1, 5}));
  EXPECT_EQ(StartsIn(*file, 8, 2), (std::vector<int32_t>{}));
}

TEST(IndexedFile, ReadsEveryTokenTypeAndDocumentsOfSeveralSequences) {
  TempFolder folder;
  const std::vector<std::pair<int, int>> types = {{1, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};  // code, width
  for (const auto& [code, width] : types) {
    std::string bin;
    for (int token = 0; token < 6; ++token) {
      bin += static_cast<char>(100 + token);
      bin.append(width - 1, '\0');
    }
    WriteText(folder / "a.bin", bin);
    // Two sequences in the first document, none in the second.
    WriteText(folder / "a.idx", MakeIndex(code, {1, 2, 3}, {0, width, 3 * width}, {0, 2, 2, 3}));
    const auto file = IndexedFile::Open(folder / "a", 0);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(ReadAll(**file), (std::vector<int64_t>{100, 101, 102, 103, 104, 105}));
    EXPECT_EQ((*file)->num_documents(), 3);
    EXPECT_EQ(StartsIn(**file, 0, 6), (std::vector<int32_t>{3}));
  }
}

TEST(IndexedFile, RefusesHostileIndexes) {
  TempFolder folder;
  WriteText(folder / "a.bin", std::string(20, '\1'));
  const auto open = [&](const std::string& index) {
    WriteText(folder / "a.idx", index);
    return IndexedFile::Open(folder / "a", 0).status();
  };
  ASSERT_TRUE(open(MakeIndex(8, {3, 7}, {0, 6}, {0, 1, 2})).ok());
  EXPECT_ERROR(open(MakeIndex(7, {3, 7}, {0, 6}, {0, 1, 2})), ExitCode::kData, "element type 7");
  EXPECT_ERROR(open(MakeIndex(8, {-3, 7}, {0, 6}, {0, 1, 2})), ExitCode::kData, "has the length -3");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 8}, {0, 1, 2})), ExitCode::kData, "at byte 8, expected 6");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, -6}, {0, 1, 2})), ExitCode::kData, "at byte -6");
  EXPECT_ERROR(open(MakeIndex(8, {3, 8}, {0, 6}, {0, 1, 2})), ExitCode::kData, "truncated");
  EXPECT_ERROR(open(MakeIndex(8, {3, 6}, {0, 6}, {0, 1, 2})), ExitCode::kData, "not the .bin of this index");
  EXPECT_ERROR(open(MakeIndex(8, {INT32_MAX, INT32_MAX}, {0, 6}, {0, 1, 2})), ExitCode::kData, "truncated");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 6}, {1, 1, 2})), ExitCode::kData, "document index 0");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 6}, {0, 3, 2})), ExitCode::kData, "document index 1");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 6}, {0, 2, 1})), ExitCode::kData, "document index 2");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 6}, {0, 1, 1})), ExitCode::kData, "documents end at sequence 1");
  EXPECT_ERROR(open(MakeIndex(8, {3, 7}, {0, 6}, {})), ExitCode::kData, "do not fit its size");
  std::string counts = MakeIndex(8, {3, 7}, {0, 6}, {0, 1, 2});
  for (const uint64_t count : {~uint64_t{0}, uint64_t{1} << 61, uint64_t{1} << 63, uint64_t{1} << 32}) {
    for (const size_t offset : {18, 26}) {
      std::string hostile = counts;
      std::memcpy(hostile.data() + offset, &count, sizeof(count));
      EXPECT_ERROR(open(hostile), ExitCode::kData, "do not fit its size");
    }
  }
}

TEST(IndexedFile, NoMutationOfTheIndexCrashesOrReadsOutside) {
  TempFolder folder;
  WriteIndexed(folder / "a", kDocuments);
  const std::string index = ReadText(folder / "a.idx");
  int accepted = 0;
  const auto try_open = [&](const std::string& mutated) {
    WriteText(folder / "a.idx", mutated);
    const auto file = IndexedFile::Open(folder / "a", 0);
    if (!file.ok()) {
      EXPECT_EQ(ExitCodeOf(file.status()), ExitCode::kData) << file.status();
      return;
    }
    ++accepted;  // Structurally whole: another type of the same width, or other document boundaries.
    ReadAll(**file);
    StartsIn(**file, 0, (*file)->num_tokens());
  };
  for (size_t length = 0; length < index.size(); ++length) try_open(index.substr(0, length));
  EXPECT_EQ(accepted, 0);
  try_open(index + '\0');
  EXPECT_EQ(accepted, 0);
  for (size_t i = 0; i < index.size(); ++i) {
    for (const int value : {0, 1, 2, 4, 127, 128, 255}) {
      std::string mutated = index;
      if (mutated[i] == static_cast<char>(value)) continue;
      mutated[i] = static_cast<char>(value);
      try_open(mutated);
    }
  }
  EXPECT_LT(accepted, 20);
}

TEST(IndexedFile, TruncatedBinIsAnErrorEvenWhileInUse) {
  TempFolder folder;
  WriteIndexed(folder / "a", kDocuments);
  const auto file = IndexedFile::Open(folder / "a", 0).value();
  std::filesystem::resize_file(folder / "a.bin", 12);
  std::vector<int64_t> tokens(10);
  EXPECT_ERROR(file->Read(0, 10, tokens.data()), ExitCode::kData, "it ends at byte 12");
  EXPECT_ERROR(IndexedFile::Open(folder / "a", 0).status(), ExitCode::kData, "truncated");
}

TEST(IndexedFile, TokenBeyondTheVocabularyNamesFileAndPlace) {
  TempFolder folder;
  WriteIndexed(folder / "a", kDocuments);
  const auto file = IndexedFile::Open(folder / "a", /*vocab_size=*/7).value();
  std::vector<int64_t> tokens(10);
  EXPECT_TRUE(file->Read(0, 6, tokens.data()).ok());
  EXPECT_ERROR(file->Read(2, 8, tokens.data()), ExitCode::kData, "a.bin: token 7 at byte 12 (token number 6)");
  WriteText(folder / "negative.bin", std::string("\1\0\0\0\xff\xff\xff\xff", 8));
  WriteText(folder / "negative.idx", MakeIndex(4, {2}, {0}, {0, 1}));
  EXPECT_ERROR(IndexedFile::Open(folder / "negative", 0).value()->Read(0, 2, tokens.data()), ExitCode::kData,
               "token -1 at byte 4");
}

template <typename T>
void WriteLlmc(const std::string& path, int32_t magic, int32_t version, int32_t count, const std::vector<T>& tokens) {
  std::string bytes;
  Append(magic, &bytes);
  Append(version, &bytes);
  Append(count, &bytes);
  bytes.resize(1024);
  for (const T token : tokens) Append(token, &bytes);
  WriteText(path, bytes);
}

TEST(LlmcFile, ReadsBothVariants) {
  TempFolder folder;
  WriteLlmc<uint16_t>(folder / "gpt2.bin", 20240520, 1, 5, {50256, 1, 2, 50256, 65535});
  WriteLlmc<uint32_t>(folder / "llama3.bin", 20240801, 7, 4, {128000, 1, 128000, 2});
  const auto gpt2 = LlmcFile::Open(folder / "gpt2.bin", 0).value();
  EXPECT_EQ(ReadAll(*gpt2), (std::vector<int64_t>{50256, 1, 2, 50256, 65535}));
  EXPECT_EQ(StartsIn(*gpt2, 0, 5), (std::vector<int32_t>{3}));
  const auto llama3 = LlmcFile::Open(folder / "llama3.bin", 0).value();
  EXPECT_EQ(ReadAll(*llama3), (std::vector<int64_t>{128000, 1, 128000, 2}));
  EXPECT_EQ(StartsIn(*llama3, 1, 3), (std::vector<int32_t>{1}));
}

TEST(LlmcFile, AFailedReadIsNoStretchWithoutDocuments) {
  TempFolder folder;
  const std::string path = folder / "gpt2.bin";
  WriteLlmc<uint16_t>(path, 20240520, 1, 5, {50256, 1, 2, 50256, 3});
  const auto file = LlmcFile::Open(path, 0).value();
  std::vector<int64_t> tokens(5);
  std::vector<int32_t> starts;
  ASSERT_TRUE(file->ReadWithStarts(0, 5, tokens.data(), &starts).ok());
  EXPECT_EQ(tokens, (std::vector<int64_t>{50256, 1, 2, 50256, 3}));
  EXPECT_EQ(starts, std::vector<int32_t>{3});
  std::filesystem::resize_file(path, 1024 + 4);  // while it is open
  EXPECT_FALSE(file->DocumentStarts(0, 5, &starts).ok());
  EXPECT_FALSE(file->ReadWithStarts(0, 5, tokens.data(), &starts).ok());
}

TEST(LlmcFile, RefusesDamagedFiles) {
  TempFolder folder;
  const std::string path = folder / "a.bin";
  WriteLlmc<uint16_t>(path, 20240520, 1, 6, {1, 2, 3, 4, 5});
  EXPECT_ERROR(LlmcFile::Open(path, 0).status(), ExitCode::kData, "says 6 tokens but its size is that of 5");
  WriteLlmc<uint16_t>(path, 20240520, 1, -1, {1});
  EXPECT_ERROR(LlmcFile::Open(path, 0).status(), ExitCode::kData, "says -1 tokens");
  WriteLlmc<uint16_t>(path, 20240520, 7, 1, {1});
  EXPECT_ERROR(LlmcFile::Open(path, 0).status(), ExitCode::kData, "neither an llm.c token file");
  WriteText(path, "short");
  EXPECT_ERROR(LlmcFile::Open(path, 0).status(), ExitCode::kData, "neither an llm.c token file");
  WriteLlmc<uint16_t>(path, 20240520, 1, 1, {1});
  std::filesystem::resize_file(path, 700);
  EXPECT_ERROR(LlmcFile::Open(path, 0).status(), ExitCode::kData, "truncated");
}

}  // namespace
}  // namespace trireme
