#include "data/corpus/corpus.h"

#include <absl/strings/str_replace.h>
#include <gtest/gtest.h>

#include "data/corpus/manifest.h"
#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

const Documents kFirst = {{1, 2, 3}, {4, 5}};
const Documents kSecond = {{6}, {7, 8, 9}};
const Documents kValidation = {{10, 11}};

CorpusShard DescribeShard(const std::string& prefix, const Documents& documents) {
  CorpusShard shard;
  shard.set_name(std::filesystem::path(prefix).filename().string());
  shard.set_num_documents(static_cast<int64_t>(documents.size()));
  int64_t tokens = 0;
  for (const auto& document : documents) tokens += static_cast<int64_t>(document.size());
  shard.set_num_tokens(tokens);
  shard.set_bin_bytes(2 * tokens);
  shard.set_bin_digest(HashFile(prefix + ".bin").value());
  shard.set_idx_digest(HashFile(prefix + ".idx").value());
  return shard;
}

// Two train shards of 5 and 4 tokens, a validation shard of 2, tokenizer.json and manifest.
void WriteCorpus(const TempFolder& folder) {
  WriteIndexed(folder / "train-00000", kFirst);
  WriteIndexed(folder / "train-00001", kSecond);
  WriteIndexed(folder / "validation-00000", kValidation);
  WriteText(folder / kTokenizerName, "{\"stands\": \"for a tokenizer\"}");
  CorpusManifest manifest;
  manifest.set_version(1);
  manifest.set_tokenizer_digest(HashFile(folder / kTokenizerName).value());
  manifest.set_vocab_size(12);
  CorpusSplit* train = manifest.add_split();
  train->set_name("train");
  *train->add_shard() = DescribeShard(folder / "train-00000", kFirst);
  *train->add_shard() = DescribeShard(folder / "train-00001", kSecond);
  train->set_num_documents(4);
  train->set_num_tokens(9);
  CorpusSplit* validation = manifest.add_split();
  validation->set_name("validation");
  *validation->add_shard() = DescribeShard(folder / "validation-00000", kValidation);
  validation->set_num_documents(1);
  validation->set_num_tokens(2);
  WriteText(folder / kManifestName, FormatManifest(manifest));
}

absl::Status Open(const std::string& path, bool verify_checksums = false) {
  CorpusOptions options;
  options.verify_checksums = verify_checksums;
  return OpenCorpus(path, options).status();
}

void EditManifest(const TempFolder& folder, const std::string& from, const std::string& to) {
  const std::string text = ReadText(folder / kManifestName);
  const std::string edited = absl::StrReplaceAll(text, {{from, to}});
  ASSERT_NE(text, edited) << from;
  WriteText(folder / kManifestName, edited);
}

TEST(Corpus, ShardsReadAsOneStream) {
  TempFolder folder;
  WriteCorpus(folder);
  const Corpus corpus = OpenCorpus(folder / "", {}).value();
  EXPECT_EQ(ReadAll(*corpus.train), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(ReadAll(*corpus.validation), (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(corpus.train->num_documents(), 4);
  EXPECT_EQ(corpus.tokenizer_path, folder / kTokenizerName);
  EXPECT_TRUE(corpus.manifest.has_value());
  for (int64_t begin = 0; begin < 9; ++begin) {
    for (int64_t count = 1; begin + count <= 9; ++count) {
      std::vector<int64_t> tokens(count);
      ASSERT_TRUE(corpus.train->Read(begin, count, tokens.data()).ok());
      std::vector<int32_t> starts, expected;
      ASSERT_TRUE(corpus.train->DocumentStarts(begin, count, &starts).ok());
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(tokens[i], begin + i + 1);
        const bool starts_document = begin + i == 3 || begin + i == 5 || begin + i == 6;
        if (i > 0 && starts_document) expected.push_back(static_cast<int32_t>(i));
      }
      EXPECT_EQ(starts, expected) << begin << " " << count;
    }
  }
}

TEST(Corpus, DigestIdentifiesTheContent) {
  TempFolder a, b;
  WriteCorpus(a);
  WriteCorpus(b);
  EXPECT_EQ(OpenCorpus(a / "", {})->digest, OpenCorpus(b / "", {})->digest);
  EXPECT_NE(OpenCorpus(a / "", {})->digest, OpenCorpus(a / "train-00000", {})->digest);
  WriteIndexed(a / "foreign", kFirst);
  WriteIndexed(b / "foreign", {{1, 2, 3}, {4, 6}});
  EXPECT_NE(OpenCorpus(a / "foreign", {})->digest, OpenCorpus(b / "foreign", {})->digest);
}

TEST(Corpus, ForeignFilesAreAccepted) {
  TempFolder folder;
  WriteIndexed(folder / "b", kSecond);
  WriteIndexed(folder / "a", kFirst);
  WriteIndexed(folder / "validation", kValidation);
  for (const char* name : {"a", "a.idx", "a.bin"}) {
    const auto corpus = OpenCorpus(folder / name, {});
    ASSERT_TRUE(corpus.ok()) << corpus.status();
    EXPECT_EQ(corpus->train->num_tokens(), 5);
    EXPECT_FALSE(corpus->manifest.has_value());
    EXPECT_TRUE(corpus->tokenizer_path.empty());
  }
  const Corpus whole = OpenCorpus(folder / "", {}).value();
  EXPECT_EQ(ReadAll(*whole.train), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(ReadAll(*whole.validation), (std::vector<int64_t>{10, 11}));
}

TEST(Corpus, OneShardOfACorpusKeepsItsManifest) {
  TempFolder folder;
  WriteCorpus(folder);
  const Corpus corpus = OpenCorpus(folder / "train-00001", {}).value();
  EXPECT_EQ(ReadAll(*corpus.train), (std::vector<int64_t>{6, 7, 8, 9}));
  ASSERT_TRUE(corpus.manifest.has_value());
  EXPECT_EQ(corpus.manifest->vocab_size(), 12);
  EXPECT_EQ(corpus.validation, nullptr);
}

TEST(Corpus, MissingOnesNameTheRemedy) {
  TempFolder folder;
  EXPECT_ERROR(Open(folder / "none"), ExitCode::kData, "trireme prepare");
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "trireme prepare");
  WriteText(folder / "lonely.bin", "12");
  EXPECT_ERROR(Open(folder / "lonely"), ExitCode::kData, "no " + folder / "lonely.idx");
  EXPECT_ERROR(Open(folder / "lonely.bin"), ExitCode::kData, "neither an llm.c token file");
  WriteIndexed(folder / "no_bin", kFirst);
  std::filesystem::remove(folder / "no_bin.bin");
  EXPECT_ERROR(Open(folder / "no_bin"), ExitCode::kData, "no_bin.bin");
}

TEST(Corpus, FilesMustMatchTheManifest) {
  TempFolder folder;
  WriteCorpus(folder);
  WriteIndexed(folder / "train-00001", {{6}, {7, 8}});
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "it has 6 bytes but its manifest says 8");
  WriteIndexed(folder / "train-00001", {{6}, {7}, {8, 9}});
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "it has 3 documents but its manifest says 2");
  WriteIndexed(folder / "train-00001", kSecond, /*vocab_size=*/100000);
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "it has 16 bytes but its manifest says 8");
  std::filesystem::remove(folder / "train-00001.bin");
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "train-00001.bin");
}

TEST(Corpus, TokenizerMustBeTheCorpuss) {
  TempFolder folder;
  WriteCorpus(folder);
  WriteText(folder / kTokenizerName, "{}");
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "tokenizer.json: its digest is");
  std::filesystem::remove(folder / kTokenizerName);
  EXPECT_ERROR(Open(folder / ""), ExitCode::kData, "it is missing");
}

TEST(Corpus, TokensMustBeBelowTheVocabulary) {
  TempFolder folder;
  WriteCorpus(folder);
  std::vector<int64_t> tokens(9);
  EXPECT_TRUE(OpenCorpus(folder / "", {})->train->Read(0, 9, tokens.data()).ok());
  CorpusOptions options;
  options.vocab_size = 9;
  EXPECT_ERROR(OpenCorpus(folder / "", options)->train->Read(0, 9, tokens.data()), ExitCode::kData,
               "train-00001.bin: token 9 at byte 6");
  EditManifest(folder, "vocab_size: 12", "vocab_size: 8");
  EXPECT_ERROR(OpenCorpus(folder / "", {})->train->Read(0, 9, tokens.data()), ExitCode::kData, "token 8 at byte 4");
}

TEST(Corpus, DamagedManifestsNameThePlace) {
  const auto error = [](const std::string& from, const std::string& to) {
    TempFolder folder;
    WriteCorpus(folder);
    EditManifest(folder, from, to);
    return Open(folder / "");
  };
  EXPECT_ERROR(error("version: 1\n", "version: one\n"), ExitCode::kData, "manifest.textproto:3:10: ");
  EXPECT_ERROR(error("vocab_size: 12", "vocab_sizes: 12"), ExitCode::kData, "manifest.textproto:5:");
  EXPECT_ERROR(error("version: 1\n", "version: 2\n"), ExitCode::kData, "format version 2");
  EXPECT_ERROR(error("num_tokens: 5", "num_tokens: 6"), ExitCode::kData, "its shards add up to 4 and 10");
  EXPECT_ERROR(error("num_tokens: 5", "num_tokens: -5"), ExitCode::kData, "impossible counts");
  EXPECT_ERROR(error("num_tokens: 5", "num_tokens: 9223372036854775807"), ExitCode::kData, "impossible counts");
  EXPECT_ERROR(error("num_tokens: 5", "num_tokens: 9223372036854775808"), ExitCode::kData, "manifest.textproto:");
  EXPECT_ERROR(error("\"train-00000\"", "\"../train-00000\""), ExitCode::kData, "not a plain file name");
  EXPECT_ERROR(error("\"train-00000\"", "\"..\""), ExitCode::kData, "not a plain file name");
  EXPECT_ERROR(error("\"train-00000\"", "\"\""), ExitCode::kData, "not a plain file name");
  EXPECT_ERROR(error("\"train-00000\"", "\"train\\000\""), ExitCode::kData, "not a plain file name");
  EXPECT_ERROR(error("\"train-00000\"", "\"train-00001\""), ExitCode::kData, "listed twice");
  EXPECT_ERROR(error("\"train\"", "\"test\""), ExitCode::kData, "unknown split \"test\"");
  EXPECT_ERROR(error("\"validation\"", "\"train\""), ExitCode::kData, "split \"train\" is there twice");
  EXPECT_ERROR(error("\"train\"", "\"validation\""), ExitCode::kData, "split \"validation\" is there twice");
}

TEST(Corpus, NoMutationOfTheManifestCrashes) {
  TempFolder folder;
  WriteCorpus(folder);
  const std::string manifest = ReadText(folder / kManifestName);
  for (size_t i = 0; i < manifest.size(); ++i) {
    WriteText(folder / kManifestName, manifest.substr(0, i));
    const absl::Status truncated = Open(folder / "");
    EXPECT_TRUE(truncated.ok() || ExitCodeOf(truncated) == ExitCode::kData) << truncated;
    for (const char replacement : {'\0', '{', '9', '"', '\xff'}) {
      std::string mutated = manifest;
      mutated[i] = replacement;
      WriteText(folder / kManifestName, mutated);
      const absl::Status status = Open(folder / "");
      EXPECT_TRUE(status.ok() || ExitCodeOf(status) == ExitCode::kData) << status;
    }
  }
}

TEST(Corpus, VerificationFindsAnyChangedByte) {
  TempFolder folder;
  WriteCorpus(folder);
  EXPECT_TRUE(Open(folder / "", /*verify_checksums=*/true).ok());
  for (const char* name : {"train-00000.bin", "train-00001.idx", "validation-00000.bin"}) {
    const std::string whole = ReadText(folder / name);
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string damaged = whole;
      damaged[i] ^= 1;
      WriteText(folder / name, damaged);
      EXPECT_ERROR(Open(folder / "", /*verify_checksums=*/true), ExitCode::kData, "verify " + folder / name);
    }
    WriteText(folder / name, whole);
  }
}

}  // namespace
}  // namespace trireme
