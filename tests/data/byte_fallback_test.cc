#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "data/tokenizer/tokenizer.h"

namespace trireme {
namespace {

using nlohmann::json;
using TokenIds = std::vector<int32_t>;

// A tokenizer in Llama 2's manner: "<unk>" "<s>" "</s>", the bytes, then single characters and what merges make.
json SmallFile() {
  json vocabulary = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    char token[8];
    std::snprintf(token, sizeof(token), "<0x%02X>", byte);
    vocabulary[token] = 3 + byte;
  }
  for (const char* token : {"▁", "a", "b", "▁a", "▁▁", "ab", "▁ab", "é"}) vocabulary[token] = vocabulary.size();
  json added = json::array();
  for (int id = 0; id < 3; ++id) {
    const char* names[] = {"<unk>", "<s>", "</s>"};
    added.push_back({{"id", id}, {"content", names[id]}, {"special", true}, {"normalized", false}});
  }
  const json spaces = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "▁"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
          {"pre_tokenizer", nullptr},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {spaces,
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocabulary},
            {"merges", {"▁ ▁", "▁ a", "a b", "▁ ab", "▁a b"}}}}};
}

class ByteFallbackTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("byte_fallback_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::function<void(json&)>& change) {
    json root = SmallFile();
    change(root);
    EXPECT_TRUE(WriteFileAtomically(folder_ / "tokenizer.json", root.dump()).ok());
    return Tokenizer::Load(folder_);
  }
  std::unique_ptr<Tokenizer> Loaded(const std::function<void(json&)>& change = [](json&) {}) {
    auto tokenizer = Load(change);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  void ExpectRefused(const std::function<void(json&)>& change, const std::string& words) {
    auto tokenizer = Load(change);
    ASSERT_FALSE(tokenizer.ok()) << words;
    EXPECT_EQ(ExitCodeOf(tokenizer.status()), ExitCode::kData);
    EXPECT_NE(std::string(tokenizer.status().message()).find(words), std::string::npos) << tokenizer.status();
  }

  std::filesystem::path folder_;
};

TokenIds Encoded(const Tokenizer& tokenizer, const std::string& text) {
  TokenIds ids;
  EXPECT_TRUE(tokenizer.Encode(text, &ids).ok());
  return ids;
}

TEST_F(ByteFallbackTest, CharactersWithoutTokenBecomeBytes) {
  const auto tokenizer = Loaded();
  const int32_t space = tokenizer->TokenId("▁"), e = tokenizer->TokenId("é"), ab = tokenizer->TokenId("▁ab");
  EXPECT_EQ(Encoded(*tokenizer, "ab ab"), (TokenIds{ab, ab}));
  EXPECT_EQ(Encoded(*tokenizer, "éü"), (TokenIds{space, e, 3 + 0xC3, 3 + 0xBC}));
  EXPECT_EQ(Encoded(*tokenizer, "<s>ab"), (TokenIds{1, ab}));
  EXPECT_EQ(Encoded(*tokenizer, ""), TokenIds{});
}

TEST_F(ByteFallbackTest, DecodeDropsOneLeadingSpaceAndTokenBytesDoesNot) {
  const auto tokenizer = Loaded();
  for (const std::string text : {"ab", " ab", "  a  b ", "日本 é\n", "", " "}) {
    EXPECT_EQ(tokenizer->Decode(Encoded(*tokenizer, text)), text);
  }
  EXPECT_EQ(tokenizer->TokenBytes(tokenizer->TokenId("▁ab")), " ab");
  EXPECT_EQ(tokenizer->TokenBytes(3 + 0xE6), "\xE6");
  EXPECT_EQ(tokenizer->TokenBytes(100000), "");
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  EXPECT_FALSE(tokenizer->IsSpecial(5));
}

TEST_F(ByteFallbackTest, MetaspacePrependsAsItsSchemeSays) {
  auto with = [](const char* scheme) {
    return [scheme](json& root) {
      root["normalizer"] = nullptr;
      root["pre_tokenizer"] = {
          {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
    };
  };
  const auto plain = Loaded();
  const int32_t a = plain->TokenId("a"), space_a = plain->TokenId("▁a");
  EXPECT_EQ(Encoded(*Loaded(with("always")), "a<s>a"), (TokenIds{space_a, 1, space_a}));
  EXPECT_EQ(Encoded(*Loaded(with("first")), "a<s>a"), (TokenIds{space_a, 1, a}));
  EXPECT_EQ(Encoded(*Loaded(with("first")), "<s>a"), (TokenIds{1, a}));
  EXPECT_EQ(Encoded(*Loaded(with("never")), "a a"), (TokenIds{a, space_a}));
}

// With a merge across words the whole text is one piece, else it is cut at them: the ids must be the same.
TEST_F(ByteFallbackTest, CuttingAtWordsChangesNoIds) {
  const auto cut = Loaded();
  const auto whole = Loaded([](json& root) {
    root["model"]["vocab"]["é▁"] = root["model"]["vocab"].size();
    root["model"]["merges"].push_back("é ▁");
  });
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string text;
    for (uint32_t n = random() % 200; n > 0; --n) text += "ab  \nx"[random() % 6];
    ASSERT_EQ(Encoded(*cut, text), Encoded(*whole, text)) << text;
  }
  EXPECT_EQ(Encoded(*whole, "é b")[1], whole->TokenId("é▁"));
}

TEST_F(ByteFallbackTest, RefusesWhatItWouldNotReproduce) {
  ExpectRefused([](json& r) { r["model"]["vocab"].erase("<0x41>"); }, "<0x41>");
  ExpectRefused([](json& r) { r["model"]["byte_fallback"] = false; }, "byte_fallback");
  ExpectRefused([](json& r) { r["decoder"] = {{"type", "ByteLevel"}}; }, "ByteLevel");
  ExpectRefused([](json& r) { r["decoder"]["decoders"][3]["start"] = 2; }, "Strip");
  ExpectRefused(
      [](json& r) {
        r["decoder"]["decoders"].insert(r["decoder"]["decoders"].begin(), 1, {{"type", "Fuse"}});
      },
      "Replace");
  ExpectRefused([](json& r) { r["normalizer"]["normalizers"][0]["prepend"] = std::string(1000, 'x'); }, "1000 bytes");
  ExpectRefused([](json& r) { r["normalizer"]["normalizers"][1]["content"] = ""; }, "content");
  ExpectRefused([](json& r) { r["normalizer"]["normalizers"][1]["pattern"] = {{"Regex", " "}}; }, "Replace");
  ExpectRefused([](json& r) { r["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "Metaspace");
}

}  // namespace
}  // namespace trireme
