#include "data/prepare/prepare.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <tuple>

#include "data/corpus/adopt.h"
#include "data/corpus/manifest.h"
#include "data/prepare/inspect.h"
#include "data/prepare/tokenize_pipeline.h"
#include "tests/data/hostile_tokenizer.h"
#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

std::string DocumentText(int i) { return absl::StrCat("document ", i, std::string(i * 37 % 500, 'a' + i % 26)); }

std::string JsonLines(int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) lines += "{\"text\": \"" + DocumentText(i) + "\"}\n";
  return lines;
}

class Prepared : public testing::Test {
 protected:
  Prepared() {
    WriteByteTokenizer(folder_ / "tokenizer.json");
    WriteText(folder_ / "input.jsonl", JsonLines(3000));
  }

  PrepareOptions Options(const std::string& output) const {
    PrepareOptions options;
    options.inputs = {folder_ / "input.jsonl"};
    options.tokenizer = folder_ / "tokenizer.json";
    options.output = folder_ / output;
    options.validation_fraction = 0.1;
    options.shard_tokens = 50000;
    options.threads = 2;
    return options;
  }

  TempFolder folder_;
};

// The documents of a split as text; checks that each ends with the end-of-document token.
std::vector<std::string> Texts(const TokenStream& stream) {
  const std::vector<int64_t> tokens = ReadAll(stream);
  std::vector<int32_t> starts;
  EXPECT_TRUE(stream.DocumentStarts(0, stream.num_tokens(), &starts).ok());
  starts.push_back(static_cast<int32_t>(tokens.size()));
  std::vector<std::string> texts;
  int32_t begin = 0;
  for (const int32_t end : starts) {
    EXPECT_EQ(tokens[end - 1], kEndOfDocument);
    texts.emplace_back(tokens.begin() + begin, tokens.begin() + end - 1);
    begin = end;
  }
  return texts;
}

TEST_F(Prepared, HoldsEveryDocumentInOrderInItsSplit) {
  ASSERT_TRUE(Prepare(Options("corpus")).ok());
  CorpusOptions verify;
  verify.verify_checksums = true;
  const auto corpus = OpenCorpus(folder_ / "corpus", verify);
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  std::vector<std::string> train, validation;
  for (int i = 0; i < 3000; ++i) (InValidation(i, 0.1) ? validation : train).push_back(DocumentText(i));
  EXPECT_EQ(Texts(*corpus->train), train);
  EXPECT_EQ(Texts(*corpus->validation), validation);
  EXPECT_NEAR(static_cast<double>(validation.size()), 300, 60);
  const CorpusManifest& manifest = *corpus->manifest;
  EXPECT_GT(manifest.split(0).shard_size(), 5);
  for (const CorpusShard& shard : manifest.split(0).shard()) EXPECT_LE(shard.num_tokens(), 50000);
  EXPECT_EQ(manifest.vocab_size(), kTestVocabSize);
  EXPECT_EQ(manifest.end_of_document(), kEndOfDocument);
  EXPECT_EQ(ReadText(folder_ / "corpus/tokenizer.json"), ReadText(folder_ / "tokenizer.json"));
}

TEST_F(Prepared, UnigramEntropyIsThatOfTheTrainSplit) {
  ASSERT_TRUE(Prepare(Options("corpus")).ok());
  const Corpus corpus = OpenCorpus(folder_ / "corpus", {}).value();
  std::map<int64_t, double> counts;
  for (const int64_t token : ReadAll(*corpus.train)) ++counts[token];
  double entropy = 0;
  const double total = static_cast<double>(corpus.train->num_tokens());
  for (const auto& [token, count] : counts) entropy -= count / total * std::log(count / total);
  EXPECT_NEAR(corpus.manifest->unigram_entropy(), entropy, 1e-9);
}

TEST_F(Prepared, DoesNotDependOnTheNumberOfThreads) {
  PrepareOptions options = Options("one");
  options.threads = 1;
  ASSERT_TRUE(Prepare(options).ok());
  for (const int threads : {3, 8}) {
    options.threads = threads;
    options.output = folder_ / absl::StrCat("threads-", threads);
    ASSERT_TRUE(Prepare(options).ok());
    EXPECT_EQ(ReadFolder(options.output), ReadFolder(folder_ / "one")) << threads;
  }
}

TEST_F(Prepared, TwoDocumentsMakeBothSplits) {
  WriteText(folder_ / "input.jsonl", JsonLines(2));
  PrepareOptions options = Options("corpus");
  options.validation_fraction = 1e-9;
  ASSERT_TRUE(Prepare(options).ok());
  const Corpus corpus = OpenCorpus(folder_ / "corpus", {}).value();
  EXPECT_EQ(Texts(*corpus.train), (std::vector<std::string>{DocumentText(0)}));
  ASSERT_NE(corpus.validation, nullptr);
  EXPECT_EQ(Texts(*corpus.validation), (std::vector<std::string>{DocumentText(1)}));
  options.validation_fraction = 0;
  options.output = folder_ / "without";
  ASSERT_TRUE(Prepare(options).ok());
  EXPECT_EQ(OpenCorpus(folder_ / "without", {})->validation, nullptr);
}

TEST_F(Prepared, ExistingOutputIsReplacedOnlyWhenAsked) {
  PrepareOptions options = Options("corpus");
  ASSERT_TRUE(Prepare(options).ok());
  const auto before = ReadFolder(options.output);
  WriteText(folder_ / "input.jsonl", JsonLines(10));
  EXPECT_ERROR(Prepare(options), ExitCode::kConfig, "exists already");
  EXPECT_EQ(ReadFolder(options.output), before);
  options.overwrite = true;
  ASSERT_TRUE(Prepare(options).ok());
  EXPECT_EQ(OpenCorpus(options.output, {})->manifest->split(0).shard_size(), 1);
  std::filesystem::create_directories(folder_ / "precious");
  WriteText(folder_ / "precious/file", "mine");
  options.output = folder_ / "precious";
  EXPECT_ERROR(Prepare(options), ExitCode::kConfig, "is not a corpus");
  EXPECT_EQ(ReadText(folder_ / "precious/file"), "mine");
}

TEST_F(Prepared, ErrorsLeaveNothingBehind) {
  const auto refused = [&](PrepareOptions options, ExitCode code, const std::string& part) {
    EXPECT_ERROR(Prepare(options), code, part);
    EXPECT_FALSE(std::filesystem::exists(options.output));
    EXPECT_FALSE(std::filesystem::exists(options.output + ".tmp-prepare"));
  };
  PrepareOptions options = Options("corpus");
  options.validation_fraction = 1;
  refused(options, ExitCode::kConfig, "--validation-fraction");
  options = Options("corpus");
  options.inputs = {folder_ / "missing"};
  refused(options, ExitCode::kData, "missing");
  options = Options("corpus");
  options.tokenizer = folder_ / "missing.json";
  refused(options, ExitCode::kData, "missing.json");
  options = Options("corpus");
  WriteText(folder_ / "input.jsonl", JsonLines(2000) + "{\"text\": 1}\n");
  refused(options, ExitCode::kData, "input.jsonl:2001: field \"text\" is a number");
  WriteText(folder_ / "input.jsonl", "{\"text\": \"\"}\n");
  refused(options, ExitCode::kData, "hold no text");
}

// Runs `body` in a child process.
pid_t Fork(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  return child;
}

TEST_F(Prepared, FullDiskIsAStorageErrorAndLeavesNothing) {
  const pid_t child = Fork([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {40000, 40000};  // No file may grow beyond this.
    setrlimit(RLIMIT_FSIZE, &limit);
    return static_cast<int>(ExitCodeOf(Prepare(Options("corpus"))));
  });
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  ASSERT_TRUE(WIFEXITED(result));
  EXPECT_EQ(WEXITSTATUS(result), static_cast<int>(ExitCode::kStorage));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "corpus"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "corpus.tmp-prepare"));
}

TEST_F(Prepared, KilledMidwayAndStartedAgainGivesTheSameCorpus) {
  PrepareOptions options = Options("uninterrupted");
  ASSERT_TRUE(Prepare(options).ok());
  options.output = folder_ / "corpus";

  // The child reads from a pipe that is given the first part of the input only, so it stops midway.
  const std::string lines = ReadText(folder_ / "input.jsonl");
  std::filesystem::remove(folder_ / "input.jsonl");
  ASSERT_EQ(mkfifo((folder_ / "input.jsonl").c_str(), 0600), 0);
  const pid_t child = Fork([&] { return static_cast<int>(ExitCodeOf(Prepare(options))); });
  const int pipe = open((folder_ / "input.jsonl").c_str(), O_WRONLY);
  ASSERT_GE(pipe, 0);
  const size_t part = lines.size() * 9 / 10;
  ASSERT_EQ(write(pipe, lines.data(), part), static_cast<ssize_t>(part));
  const std::string finished_shard = folder_ / "corpus.tmp-prepare/train-00003.idx";
  for (int i = 0; i < 1000 && !std::filesystem::exists(finished_shard); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(std::filesystem::exists(finished_shard));

  // Meanwhile another one is kept out, and nothing looks finished.
  PrepareOptions second = options;
  WriteText(folder_ / "other.jsonl", lines);
  second.inputs = {folder_ / "other.jsonl"};
  EXPECT_ERROR(Prepare(second), ExitCode::kStorage, "another process is writing there");
  EXPECT_FALSE(std::filesystem::exists(options.output));

  ASSERT_EQ(kill(child, SIGKILL), 0);
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  ASSERT_TRUE(WIFSIGNALED(result));
  close(pipe);
  EXPECT_FALSE(std::filesystem::exists(options.output));
  ASSERT_TRUE(std::filesystem::exists(finished_shard));

  std::filesystem::remove(folder_ / "input.jsonl");
  WriteText(folder_ / "input.jsonl", lines);
  ASSERT_TRUE(Prepare(options).ok());
  EXPECT_EQ(ReadFolder(options.output), ReadFolder(folder_ / "uninterrupted"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "corpus.tmp-prepare"));
}

TEST_F(Prepared, AdoptedFilesGetTheManifestPrepareWouldHaveWritten) {
  ASSERT_TRUE(Prepare(Options("corpus")).ok());
  const CorpusManifest original = ReadManifest(folder_ / "corpus/manifest.textproto").value();
  std::filesystem::remove(folder_ / "corpus/manifest.textproto");
  std::filesystem::remove(folder_ / "corpus/tokenizer.json");
  ASSERT_FALSE(OpenCorpus(folder_ / "corpus", {})->manifest.has_value());
  AdoptOptions options = {folder_ / "corpus", folder_ / "tokenizer.json", false};
  ASSERT_TRUE(Adopt(options).ok());
  CorpusManifest adopted = ReadManifest(folder_ / "corpus/manifest.textproto").value();
  EXPECT_EQ(ContentDigest(adopted), ContentDigest(original));
  EXPECT_DOUBLE_EQ(adopted.unigram_entropy(), original.unigram_entropy());
  CorpusOptions verify;
  verify.verify_checksums = true;
  EXPECT_TRUE(OpenCorpus(folder_ / "corpus", verify).ok());
  EXPECT_ERROR(Adopt(options), ExitCode::kConfig, "exists already");
}

TEST_F(Prepared, AdoptRefusesTokensOfAnotherTokenizer) {
  std::filesystem::create_directories(folder_ / "foreign");
  WriteIndexed(folder_ / "foreign/data", {{1, 2}, {3, 300}});
  EXPECT_ERROR(Adopt({folder_ / "foreign/data", folder_ / "tokenizer.json", false}), ExitCode::kData,
               "data.bin: token 300 at byte 6");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "foreign/manifest.textproto"));
  EXPECT_ERROR(Adopt({folder_ / "foreign/none", folder_ / "tokenizer.json", false}), ExitCode::kData, "none.idx");
}

TEST_F(Prepared, InspectShowsFactsAndText) {
  ASSERT_TRUE(Prepare(Options("corpus")).ok());
  InspectCorpusOptions options;
  options.path = folder_ / "corpus";
  options.samples = 2;
  options.verify_checksums = true;
  std::ostringstream out;
  ASSERT_TRUE(InspectCorpus(options, out).ok());
  const Corpus corpus = OpenCorpus(options.path, {}).value();
  for (const std::string& part :
       {absl::StrCat("train: ", corpus.train->num_tokens(), " tokens, ", corpus.train->num_documents(), " documents"),
        std::string("257 ids, end of document 256"), std::string("shard train-00000: "),
        std::string("all checksums match"), std::string("sample 1 (window"), std::string("document ")}) {
    EXPECT_NE(out.str().find(part), std::string::npos) << part << "\n" << out.str();
  }
  // The shortest document is "document 0" and the like: with its end 11 tokens.
  std::vector<size_t> lengths;
  for (const std::string& text : Texts(*corpus.train)) lengths.push_back(text.size() + 1);
  std::sort(lengths.begin(), lengths.end());
  EXPECT_NE(out.str().find(absl::StrCat("shortest ", lengths.front(), ",")), std::string::npos) << out.str();
  EXPECT_NE(out.str().find(absl::StrCat("median ", lengths[(lengths.size() - 1) / 2], ",")), std::string::npos)
      << out.str();
  EXPECT_NE(out.str().find(absl::StrCat("longest ", lengths.back())), std::string::npos) << out.str();
  EXPECT_TRUE(LooksLikeCorpus(options.path));
  EXPECT_FALSE(LooksLikeCorpus(folder_ / "input.jsonl"));
}

TEST_F(Prepared, WhatGoesWrongInAThreadOfThePipelineIsAnError) {
  const std::shared_ptr<const Tokenizer> plain = *Tokenizer::Load(folder_ / "tokenizer.json");
  const HostileTokenizer tokenizer(plain);
  for (const auto& [word, code, part] : {std::tuple("EXHAUST", ExitCode::kOutOfMemory, "out of host memory"),
                                         std::tuple("REFUSE", ExitCode::kData, "too hard a text")}) {
    for (const int threads : {1, 3}) {
      WriteText(folder_ / "hostile.jsonl", JsonLines(2000) + "{\"text\": \"" + word + "\"}\n" + JsonLines(20000));
      const auto reader = TextReader::Open({folder_ / "hostile.jsonl"}, {}).value();
      TokenizePipeline pipeline(reader.get(), &tokenizer, threads);
      TokenBatch batch;
      absl::StatusOr<bool> more = true;
      while ((more = pipeline.Next(&batch)).ok()) ASSERT_TRUE(*more) << "the error got lost";
      EXPECT_ERROR(more.status(), code, part);
      EXPECT_ERROR(pipeline.Next(&batch).status(), code, part);
    }
  }
}

// A pattern and a text that together take for ever: both come from outside.
TEST_F(Prepared, APatternThatBacktracksTooMuchIsAnErrorOfTheData) {
  nlohmann::json file = nlohmann::json::parse(ReadText(folder_ / "tokenizer.json"));
  nlohmann::json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a+)+[bc]"}}}, {"behavior", "Isolated"}, {"invert", false}};
  nlohmann::json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}};
  WriteText(folder_ / "tokenizer.json", file.dump());
  WriteText(folder_ / "input.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"" + std::string(200, 'a') + "\"}\n");
  EXPECT_ERROR(Prepare(Options("out")), ExitCode::kData, "(a+)+[bc] exceeds the regex engine's limits");
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Load(folder_ / "tokenizer.json");
  std::vector<int32_t> ids;
  EXPECT_TRUE(tokenizer->Encode("aaab fine", &ids).ok());
  EXPECT_ERROR(tokenizer->Encode(std::string(200, 'a'), &ids), ExitCode::kData, "exceeds the regex engine's limits");
}

}  // namespace
}  // namespace trireme
