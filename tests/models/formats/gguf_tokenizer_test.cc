// Which tokenizer.json becomes which metadata. That llama.cpp then gives the same ids is tests/oracle/gguf_oracle.py's.
#include "models/formats/gguf/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/tokenizer/bpe_decoder.h"
#include "data/tokenizer/sentencepiece.pb.h"
#include "data/unicode/bpe_bytes.h"
#include "models/formats/gguf/gguf_splits.h"
#include "models/formats/gguf/gguf_tokenizer_json.h"
#include "models/formats/gguf/gguf_writer.h"

namespace trireme {
namespace {

using nlohmann::json;

const json kByteLevel = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
const json kBareByteLevel = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};

json Split(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}
json Sequence(const std::vector<json>& steps) { return {{"type", "Sequence"}, {"pretokenizers", steps}}; }

// All bytes, "ab", and two added tokens: 257 is special, 258 is not.
json Example() {
  json vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    vocabulary[SpellBytes(absl::string_view(&c, 1))] = byte;
  }
  vocabulary["ab"] = 256;
  const json added = json::array({{{"id", 257}, {"content", "<|end|>"}, {"special", true}},
                                  {{"id", 258}, {"content", "<note>"}, {"special", false}}});
  const json merges = json::array({json::array({"a", "b"})});
  return {{"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}},
          {"added_tokens", added},
          {"pre_tokenizer", kByteLevel},
          {"decoder", {{"type", "ByteLevel"}}}};
}

GgufTokenizerOptions Options(int64_t vocab_size = 264) {
  GgufTokenizerOptions options;
  options.vocab_size = vocab_size;
  return options;
}

std::optional<GgufValue> Find(const GgufTokenizer& tokenizer, const std::string& key) {
  for (const auto& [name, value] : tokenizer.metadata) {
    if (name == key) return value;
  }
  return std::nullopt;
}

template <typename T>
std::vector<T> List(const GgufTokenizer& tokenizer, const std::string& key) {
  return std::get<std::vector<T>>(std::get<GgufArray>(Find(tokenizer, key).value()));
}

// The name of the splitting rules, or the error. "nothing" is a word that no merges lead to.
std::string Pre(const json& pre_tokenizer, bool ignore_merges = false, const std::string& normalizer = "",
                const std::string& word = "nothing") {
  json file = Example();
  file["pre_tokenizer"] = pre_tokenizer;
  file["model"]["ignore_merges"] = ignore_merges;
  if (!normalizer.empty()) file["normalizer"] = {{"type", normalizer}};
  if (!word.empty()) file["model"]["vocab"][word] = 257;
  file["added_tokens"] = json::array();
  const auto tokenizer = MakeGgufTokenizer(file.dump(), Options());
  if (!tokenizer.ok()) return std::string(tokenizer.status().message());
  return std::get<std::string>(Find(*tokenizer, "tokenizer.ggml.pre").value());
}

TEST(GgufTokenizer, TokensTypesAndMerges) {
  const auto tokenizer = MakeGgufTokenizer(Example().dump(), Options());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.model"), GgufValue(std::string("gpt2")));
  const auto tokens = List<std::string>(*tokenizer, "tokenizer.ggml.tokens");
  const auto types = List<int32_t>(*tokenizer, "tokenizer.ggml.token_type");
  ASSERT_EQ(tokens.size(), 264u);
  ASSERT_EQ(types.size(), 264u);
  EXPECT_EQ(tokens[32], "\xC4\xA0");
  EXPECT_EQ(tokens[256], "ab");
  EXPECT_EQ(types[256], 1);
  EXPECT_EQ(tokens[257], "<|end|>");
  EXPECT_EQ(types[257], 3);
  EXPECT_EQ(tokens[258], "<note>");
  EXPECT_EQ(types[258], 4);
  EXPECT_EQ(tokens[259], "[PAD259]") << "rows of the embedding without a token";
  EXPECT_EQ(types[259], 5);
  EXPECT_EQ(List<std::string>(*tokenizer, "tokenizer.ggml.merges"), std::vector<std::string>{"a b"});
  EXPECT_TRUE(tokenizer->warnings.empty());
}

TEST(GgufTokenizer, UnusedNamesNeverMeetATokens) {
  json file = Example();
  file["added_tokens"][1]["content"] = "[PAD260]";
  const auto tokenizer = MakeGgufTokenizer(file.dump(), Options());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(List<std::string>(*tokenizer, "tokenizer.ggml.tokens")[260], "[PAD260]_");
}

TEST(GgufTokenizer, BothSpellingsOfMergesAreTheSame) {
  json file = Example();
  file["model"]["merges"] = {"#version: 0.2", "a b"};
  const auto tokenizer = MakeGgufTokenizer(file.dump(), Options());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(List<std::string>(*tokenizer, "tokenizer.ggml.merges"), std::vector<std::string>{"a b"});
}

TEST(GgufTokenizer, SplittingRulesWithAName) {
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_EQ(Pre(kByteLevel), "gpt-2");
  EXPECT_EQ(Pre(Sequence({kByteLevel})), "gpt-2");
  EXPECT_EQ(Pre(Sequence({Split(kGpt2Pattern), kBareByteLevel})), "gpt-2");
  EXPECT_EQ(Pre(Sequence({digits, kByteLevel})), "smollm");
  EXPECT_EQ(Pre(Sequence({Split(kLlama3Pattern), kBareByteLevel}), /*ignore_merges=*/true), "llama-bpe");
  EXPECT_EQ(Pre(Sequence({Split(kLlama3Pattern), kBareByteLevel}), /*ignore_merges=*/false), "dbrx");
  EXPECT_EQ(Pre(Sequence({Split(kQwen2Pattern), kBareByteLevel}), false, "NFC"), "qwen2");
  EXPECT_EQ(Pre(Sequence({Split(kQwen2Pattern), kBareByteLevel})), "stablelm2");
}

TEST(GgufTokenizer, RulesAreTheSameHoweverTheyAreWritten) {
  EXPECT_EQ(Pre(Sequence({Split("\\p{N}"), Sequence({Split(kGpt2Pattern), kBareByteLevel})})), "smollm");
  std::string plain = kLlama3Pattern;  // with line breaks as they are
  for (const auto& [escape, character] : {std::pair("\\r", "\r"), std::pair("\\n", "\n")}) {
    for (size_t at; (at = plain.find(escape)) != std::string::npos;) plain.replace(at, 2, character);
  }
  json removed = Split(plain);
  removed["behavior"] = "Removed";
  removed["invert"] = true;  // The pattern covers all text.
  EXPECT_EQ(Pre(Sequence({removed, kBareByteLevel})), "dbrx");
}

TEST(GgufTokenizer, WholeWordsMatterWhereMergesDoNotLeadToThem) {
  const json llama3 = Sequence({Split(kLlama3Pattern), kBareByteLevel});
  EXPECT_EQ(Pre(kByteLevel, /*ignore_merges=*/true, "", /*word=*/""), "gpt-2") << "\"ab\" is what merges give, too";
  const std::string refusal = Pre(kByteLevel, /*ignore_merges=*/true);
  EXPECT_NE(refusal.find("with ignore_merges (the token \"nothing\" is no merge's)"), std::string::npos) << refusal;
  EXPECT_EQ(Pre(llama3, true, "", ""), "llama-bpe");
  EXPECT_EQ(Pre(llama3, false, "", ""), "dbrx");
}

TEST(GgufTokenizer, NumbersThatMergesJoinAreRefusedWhereLlamaCppDoesNotCut) {
  const json falcon = Sequence({{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
                                kByteLevel,
                                {{"type", "Digits"}, {"individual_digits", false}},
                                Split("[0-9][0-9][0-9]")});
  EXPECT_EQ(Pre(falcon), "falcon");
  json file = Example();
  file["pre_tokenizer"] = falcon;
  for (const auto& [left, joined] : {std::pair("1", true), std::pair("\u00BC", true), std::pair("c", false)}) {
    json changed = file;
    changed["model"]["vocab"][std::string(left) + "a"] = 257;
    changed["model"]["merges"].push_back({left, "a"});
    changed["added_tokens"] = json::array();
    const auto made = MakeGgufTokenizer(changed.dump(), Options());
    EXPECT_EQ(made.ok(), !joined) << made.status();
    if (joined) {
      EXPECT_NE(made.status().message().find("its merges make \"" + std::string(left) + "a\""), std::string::npos);
    }
  }
}

TEST(GgufTokenizer, SplittingRulesWithoutANameAreRefused) {
  const std::string why = "llama.cpp has no name for these splitting rules";
  const json runs = {{"type", "Digits"}, {"individual_digits", false}};
  json merged = Split(kGpt2Pattern);
  merged["behavior"] = "MergedWithNext";
  for (const json& rules : {kBareByteLevel, Sequence({runs, kByteLevel}), Sequence({Split("\\p{L}+"), kBareByteLevel}),
                            Sequence({Split(kQwen2Pattern), kByteLevel}), Sequence({merged, kBareByteLevel})})
    EXPECT_NE(Pre(rules).find(why), std::string::npos) << Pre(rules);
  EXPECT_NE(Pre(kByteLevel, /*ignore_merges=*/true).find("with ignore_merges"), std::string::npos);
  json prefix = kByteLevel;
  prefix["add_prefix_space"] = true;
  EXPECT_NE(Pre(prefix).find("add_prefix_space"), std::string::npos);
}

TEST(GgufTokenizer, IdsAndTemplate) {
  GgufTokenizerOptions options = Options();
  options.bos_token_id = 1;
  options.eos_token_id = 257;
  options.pad_token_id = 2;
  options.add_bos_token = true;
  options.chat_template = "{{ messages }}";
  const auto tokenizer = MakeGgufTokenizer(Example().dump(), options);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.bos_token_id"), GgufValue(uint32_t{1}));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.eos_token_id"), GgufValue(uint32_t{257}));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.padding_token_id"), GgufValue(uint32_t{2}));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.add_bos_token"), GgufValue(true));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.chat_template"), GgufValue(std::string("{{ messages }}")));
  const auto bare = MakeGgufTokenizer(Example().dump(), Options());
  EXPECT_EQ(Find(*bare, "tokenizer.ggml.add_bos_token"), GgufValue(false)) << "llama.cpp's default differs by rules";
  for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"})
    EXPECT_EQ(Find(*bare, key), std::nullopt) << key;
}

TEST(GgufTokenizer, EveryTokenAtWhichToStop) {
  GgufTokenizerOptions options = Options();
  options.eos_token_id = 257;
  options.more_ends = {1, 2};
  auto tokenizer = MakeGgufTokenizer(Example().dump(), options);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.eos_token_id"), GgufValue(uint32_t{257}));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.eot_token_id"), GgufValue(uint32_t{1}));
  EXPECT_EQ(Find(*tokenizer, "tokenizer.ggml.eom_token_id"), GgufValue(uint32_t{2}));
  const size_t warnings = tokenizer->warnings.size();
  options.more_ends.push_back(3);
  tokenizer = MakeGgufTokenizer(Example().dump(), options);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->warnings.size(), warnings + 1);
}

TEST(GgufTokenizer, OptionsThatContradictTheFile) {
  const std::string file = Example().dump();
  GgufTokenizerOptions outside = Options(), no_bos = Options();
  outside.eos_token_id = 264;
  no_bos.add_bos_token = true;
  for (const auto& [options, why] : {std::pair<GgufTokenizerOptions, std::string>{Options(258), "has ids up to 258"},
                                     {outside, "eos_token_id 264 is outside"},
                                     {no_bos, "add_bos_token needs"}}) {
    const auto tokenizer = MakeGgufTokenizer(file, options);
    ASSERT_FALSE(tokenizer.ok()) << why;
    EXPECT_EQ(ExitCodeOf(tokenizer.status()), ExitCode::kConfig);
    EXPECT_NE(tokenizer.status().message().find(why), std::string::npos) << tokenizer.status();
  }
}

TEST(GgufTokenizer, WhatLlamaCppDoesDifferentlyIsSaid) {
  json file = Example();
  file["normalizer"] = {{"type", "NFC"}};
  file["added_tokens"][1]["lstrip"] = true;
  const auto tokenizer = MakeGgufTokenizer(file.dump(), Options());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ASSERT_EQ(tokenizer->warnings.size(), 2u);
  EXPECT_NE(tokenizer->warnings[0].find("NFC"), std::string::npos);
  EXPECT_NE(tokenizer->warnings[1].find("<note>"), std::string::npos);
}

TEST(GgufTokenizer, FilesThatAreNoByteLevelBpeAreRefused) {
  for (const std::string file : {"", "[]", "{}", R"({"model":{"type":"WordPiece"}})"})
    EXPECT_EQ(ExitCodeOf(MakeGgufTokenizer(file, Options()).status()), ExitCode::kData) << file;
}

class GgufTokenizerJson : public testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(RemoveAll(path_).ok()); }

  // The tokenizer.json made from a file that holds `metadata` and no tensors.
  absl::StatusOr<std::string> Made(const GgufMetadata& metadata) {
    auto writer = GgufWriter::Create(path_, metadata, {});
    EXPECT_TRUE(writer.ok() && (*writer)->Close().ok());
    const auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return TokenizerJsonOfGguf(**file);
  }
  GgufMetadata Metadata(const std::string& pre = "gpt-2") {
    GgufMetadata metadata = MakeGgufTokenizer(Example().dump(), Options())->metadata;
    for (auto& [key, value] : metadata) {
      if (key == "tokenizer.ggml.pre") value = pre;
    }
    return metadata;
  }

  std::string path_ = testing::TempDir() + "gguf_tokenizer_json.gguf";
};

TEST_F(GgufTokenizerJson, GivesTheSameMetadataAgain) {
  for (const GgufSplit& rules : GgufSplits()) {
    const char* pre = rules.names[0];
    const auto made = Made(Metadata(pre));
    ASSERT_TRUE(made.ok()) << made.status();
    const auto again = MakeGgufTokenizer(*made, Options());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->metadata, Metadata(pre)) << pre;
  }
}

TEST_F(GgufTokenizerJson, ABeginningOfTextIsAddedWhereTheFileSaysSo) {
  GgufTokenizerOptions options = Options();
  options.bos_token_id = 257;
  options.add_bos_token = true;
  const auto made = Made(MakeGgufTokenizer(Example().dump(), options)->metadata);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(json::parse(*made)["post_processor"]["single"][0]["SpecialToken"]["id"], "<|end|>");
}

TEST_F(GgufTokenizerJson, UnknownRulesAndKindsAreRefused) {
  const auto unknown = Made(Metadata("superbpe"));
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(ExitCodeOf(unknown.status()), ExitCode::kData);
  EXPECT_NE(unknown.status().message().find("\"superbpe\" names splitting rules that are not known"),
            std::string::npos);
  const auto pieces = Made({{"tokenizer.ggml.model", std::string("bert")}});
  ASSERT_FALSE(pieces.ok());
  EXPECT_NE(pieces.status().message().find("of the kind \"bert\""), std::string::npos);
}

// A SentencePiece model of four characters and all bytes.
std::string SentencePieceExample() {
  SentencePieceModel model;
  const auto add = [&model](const std::string& piece, float score, int type) {
    auto& added = *model.add_pieces();
    added.set_piece(piece);
    added.set_score(score);
    added.set_type(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("▁▁", 0, 4);
  for (int byte = 0; byte < 256; ++byte) add(ByteToken(byte), 0, 6);
  float score = 0;
  for (const char* piece : {"ab", "▁ab", "bc", "▁", "a", "b", "c"}) add(piece, score -= 0.5f, 1);
  model.mutable_trainer_spec()->set_model_type(2);
  model.mutable_trainer_spec()->set_byte_fallback(true);
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);
  return model.SerializeAsString();
}

TEST_F(GgufTokenizerJson, SentencePieceModelsGoThroughScoresAndMerges) {
  const auto scored = MakeGgufTokenizer(SentencePieceExample(), Options(272));
  ASSERT_TRUE(scored.ok()) << scored.status();
  const auto made = Made(scored->metadata);
  ASSERT_TRUE(made.ok()) << made.status();
  const json root = json::parse(*made);
  EXPECT_EQ(root["model"]["merges"], json::parse(R"([["a","b"],["▁","ab"],["b","c"]])"));
  EXPECT_EQ(root["normalizer"]["normalizers"][0]["prepend"], "▁");
  const auto again = MakeGgufTokenizer(*made, Options(272));
  ASSERT_TRUE(again.ok()) << again.status();
  for (const auto& [key, value] : scored->metadata) {
    const auto found = std::find_if(again->metadata.begin(), again->metadata.end(),
                                    [&key = key](const auto& entry) { return entry.first == key; });
    ASSERT_NE(found, again->metadata.end()) << key;
    // Only their order is left of the scores.
    if (key != "tokenizer.ggml.scores") {
      EXPECT_EQ(found->second, value) << key;
    }
  }
}

TEST_F(GgufTokenizerJson, WhatLlamaCppCannotBeToldIsRefused) {
  const json good = json::parse(*Made(MakeGgufTokenizer(SentencePieceExample(), Options(272))->metadata));
  const auto refused = [&](const std::function<void(json&)>& change, const std::string& why) {
    json root = good;
    change(root);
    const auto made = MakeGgufTokenizer(root.dump(), Options(272));
    ASSERT_FALSE(made.ok()) << "accepted; expected: " << why;
    EXPECT_NE(made.status().message().find(why), std::string::npos) << made.status();
  };
  refused([](json& r) { r["normalizer"]["normalizers"].push_back({{"type", "NFC"}}); }, "of the normalizer");
  refused([](json& r) { r["normalizer"] = nullptr; }, "leaves spaces as they are");
  refused([](json& r) { r["model"]["ignore_merges"] = true; }, "ignore_merges");
  refused([](json& r) { r["model"]["merges"].push_back(r["model"]["merges"][0]); }, "do not stand together");
  SentencePieceModel model;
  ASSERT_TRUE(model.ParseFromString(SentencePieceExample()));
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(true);
  EXPECT_FALSE(MakeGgufTokenizer(model.SerializeAsString(), Options(272)).ok());
}

TEST_F(GgufTokenizerJson, ContradictionsAreRefused) {
  for (const auto& [key, value, why] : std::vector<std::tuple<std::string, GgufValue, std::string>>{
           {"tokenizer.ggml.tokens", GgufArray(std::vector<std::string>{"a"}), "another length"},
           {"tokenizer.ggml.tokens", GgufArray(std::vector<std::string>(264, "a")), "stands twice"},
           {"tokenizer.ggml.merges", GgufArray(std::vector<std::string>{"ab"}), "is no pair"},
           {"tokenizer.ggml.merges", GgufArray(std::vector<std::string>{"x nothing"}), "nothing"}}) {
    GgufMetadata metadata = Metadata();
    for (auto& [name, old] : metadata) {
      if (name == key) old = value;
    }
    const auto made = Made(metadata);
    ASSERT_FALSE(made.ok()) << why;
    EXPECT_NE(made.status().message().find(why), std::string::npos) << made.status();
  }
}

}  // namespace
}  // namespace trireme
