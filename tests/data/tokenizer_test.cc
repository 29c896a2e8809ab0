// Long because every rule of tokenizer.json that changes ids is a case of its own, on one trained file.
#include "data/tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/pretokenizer/pretokenizer_regex.h"
#include "data/tokenizer/bpe_model.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/unicode/unicode.h"
#include "data/unicode/unicode_nfc.h"

namespace trireme {
namespace {

using nlohmann::json;

const std::string& TrainedFile() {
  static const std::string contents = [] {
    bool given = false;
    auto source = [&given](std::string* document) -> absl::StatusOr<bool> {
      if (given) return false;
      for (int i = 0; i < 3; ++i)
        *document += "the cat sat on the mat, the dog sat on the log; it's 1234 o'clock don't you know\n";
      return given = true;
    };
    return *TrainBpe(source, {.vocab_size = 290});
  }();
  return contents;
}

class TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("tokenizer_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadText(const std::string& contents) {
    const std::string path = folder_ / "tokenizer.json";
    EXPECT_TRUE(WriteFileAtomically(path, contents).ok());
    return Tokenizer::Load(path);
  }
  // The trained tokenizer after `change`.
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadChanged(const std::function<void(json&)>& change) {
    json root = json::parse(TrainedFile());
    change(root);
    return LoadText(root.dump());
  }
  std::unique_ptr<Tokenizer> Loaded(const std::function<void(json&)>& change = [](json&) {}) {
    auto tokenizer = LoadChanged(change);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  // Expects kData and a message with `words`.
  void ExpectRefused(const std::function<void(json&)>& change, const std::string& words) {
    auto tokenizer = LoadChanged(change);
    ASSERT_FALSE(tokenizer.ok()) << words;
    EXPECT_EQ(ExitCodeOf(tokenizer.status()), ExitCode::kData);
    EXPECT_NE(std::string(tokenizer.status().message()).find(words), std::string::npos) << tokenizer.status();
  }

  std::filesystem::path folder_;
};

std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  EXPECT_TRUE(tokenizer.Encode(text, &ids).ok());
  return ids;
}

json Added(int id, const std::string& content) {
  return {{"id", id}, {"content", content}, {"special", true}, {"normalized", false}};
}

// Short texts dense in what splitters look at.
std::string RandomText(std::mt19937* random) {
  static const std::vector<std::string> parts = {
      "a", "b",  "S", "s",  "t", "re", "LL",   "'",      "'",      " ",      " ", "  ",     "\n", "\r\n",  "\t",
      "0", "12", ".", "!?", "é", "ſ",  "日本", "\u00a0", "\u3000", "\u0301", "½", "\u180e", "😀",  "\u0663"};
  std::string text;
  for (uint32_t n = (*random)() % 24; n > 0; --n) text += parts[(*random)() % parts.size()];
  return text;
}

class Collector : public PieceSink {
 public:
  void OnPiece(absl::string_view piece) override { pieces.emplace_back(piece); }
  std::vector<std::string> pieces;
};

std::vector<std::string> Pieces(const Splitter& splitter, const std::string& text) {
  Collector sink;
  if (!text.empty()) {
    EXPECT_TRUE(splitter.Split(text, &sink).ok());
  }
  return sink.pieces;
}

TEST(Pretokenizer, HandWrittenSplittersEqualTheirPatterns) {
  const Gpt2Splitter gpt2;
  const Llama3Splitter llama3(3), qwen2(1);
  auto gpt2_regex = RegexSplitter::Create(kGpt2Pattern, SplitBehavior::kIsolated, false);
  auto llama3_regex = RegexSplitter::Create(kLlama3Pattern, SplitBehavior::kIsolated, false);
  auto qwen2_regex = RegexSplitter::Create(kQwen2Pattern, SplitBehavior::kIsolated, false);
  ASSERT_TRUE(gpt2_regex.ok() && llama3_regex.ok() && qwen2_regex.ok());
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = RandomText(&random);
    ASSERT_EQ(Pieces(gpt2, text), Pieces(**gpt2_regex, text)) << text;
    ASSERT_EQ(Pieces(llama3, text), Pieces(**llama3_regex, text)) << text;
    ASSERT_EQ(Pieces(qwen2, text), Pieces(**qwen2_regex, text)) << text;
  }
}

TEST(Pretokenizer, SplitsAsGpt2) {
  using Strings = std::vector<std::string>;
  EXPECT_EQ(Pieces(Gpt2Splitter(), "I'm  ok\n\n don't!1"),
            (Strings{"I", "'m", " ", " ok", "\n\n", " don", "'t", "!", "1"}));
  EXPECT_EQ(Pieces(Llama3Splitter(3), "I'M  ok\n\n 12345(x)\n"),
            (Strings{"I", "'M", " ", " ok", "\n\n", " ", "123", "45", "(x", ")\n"}));
}

TEST(Pretokenizer, RegexBehaviorsKeepOrDropMatches) {
  using Strings = std::vector<std::string>;
  const std::string text = "The-final--countdown";
  auto split = [&](SplitBehavior behavior) { return Pieces(**RegexSplitter::Create("-", behavior, false), text); };
  EXPECT_EQ(split(SplitBehavior::kIsolated), (Strings{"The", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kRemoved), (Strings{"The", "final", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kContiguous), (Strings{"The", "-", "final", "--", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithPrevious), (Strings{"The-", "final-", "-", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithNext), (Strings{"The", "-final", "-", "-countdown"}));
}

// The pieces here are those of the reference.
TEST(Pretokenizer, AnchorsAndNestedClassesAreTheReferences) {
  using Strings = std::vector<std::string>;
  const auto pieces = [](const char* pattern, const std::string& text) {
    const auto splitter = RegexSplitter::Create(pattern, SplitBehavior::kIsolated, false);
    EXPECT_TRUE(splitter.ok()) << splitter.status();
    return splitter.ok() ? Pieces(**splitter, text) : Strings();
  };
  EXPECT_EQ(pieces("^a", "aab\naa\n"), (Strings{"a", "ab\n", "a", "a\n"}));
  EXPECT_EQ(pieces("\\n^", "\n\n\n"), (Strings{"\n", "\n", "\n"}));
  EXPECT_EQ(pieces("a$", "aa\nba"), (Strings{"a", "a", "\nb", "a"}));
  EXPECT_EQ(pieces("\\s+$", "a \n b  "), (Strings{"a", " ", "\n b", "  "}));
  EXPECT_EQ(pieces("[[a]b]", "xab[]"), (Strings{"x", "a", "b", "[]"}));
  EXPECT_EQ(pieces("[a[b[c]]d]+", "abcd[]"), (Strings{"abcd", "[]"}));
  EXPECT_EQ(pieces(" ?[^(\\s|[.,])]+", "a b, (c|d) e"), (Strings{"a", " b", ", (", "c", "|", "d", ")", " e"}));
}

TEST(Pretokenizer, PunctuationIsTheReferences) {
  using Strings = std::vector<std::string>;
  const auto pieces = [](SplitBehavior behavior) {
    return Pieces(**RegexSplitter::Punctuation(behavior), "a,;b$ —c\u166d\u061d");
  };
  EXPECT_EQ(pieces(SplitBehavior::kIsolated), (Strings{"a", ",", ";", "b", "$", " ", "—", "c", "\u166d", "\u061d"}));
  EXPECT_EQ(pieces(SplitBehavior::kContiguous), (Strings{"a", ",;", "b", "$", " ", "—", "c", "\u166d", "\u061d"}));
  EXPECT_EQ(pieces(SplitBehavior::kMergedWithNext), (Strings{"a", ",", ";b", "$ ", "—c", "\u166d\u061d"}));
}

TEST(Pretokenizer, StepsAfterByteLevelSeeBytes) {
  const json steps = json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
      {"type": "Digits", "individual_digits": false}]})");
  const auto pre_tokenizer = PreTokenizer::FromJson(steps);
  ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  EXPECT_TRUE(pre_tokenizer->byte_level());
  Collector sink;
  ASSERT_TRUE(pre_tokenizer->Split("м 12é¼", /*at_start=*/true, &sink).ok());
  // The byte BC is spelled with a number, U+00BC.
  EXPECT_EQ(sink.pieces, (std::vector<std::string>{"\xD0", "\xBC", " ", "12", "é", "\xC2", "\xBC"}));
}

TEST(Pretokenizer, RefusesPatternsThatEnginesReadDifferently) {
  for (const char* pattern :
       {"\\w+", "[a[^b]]",    "[a-[b]]", "\\bx", "[[b]-c]", "[a&&b]", "(?<n>a)", "(?m:a)", "a{2}+", "a{,3}", "[^\\S]",
        "\\h",  "\\p{Alnum}", "\\p{^L}", "[]a]", "\\x41",   "\\R",    "a*",      "(",      "[a",    "\\"}) {
    EXPECT_FALSE(RegexSplitter::Create(pattern, SplitBehavior::kIsolated, false).ok()) << pattern;
  }
}

TEST(Unicode, RepairsAsPython) {
  EXPECT_EQ(RepairUtf8("a\xff"
                       "b"),
            "a\uFFFD"
            "b");
  EXPECT_EQ(RepairUtf8("\xe2\x82x"), "\uFFFDx");
  EXPECT_EQ(RepairUtf8("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(RepairUtf8("\xf0\x9f\x98"), "\uFFFD");
  EXPECT_FALSE(IsValidUtf8("\xc0\x80"));
  EXPECT_TRUE(IsValidUtf8("日本😀"));
}

TEST(Unicode, ComposesToNfc) {
  std::string out;
  EXPECT_EQ(NormalizeNfc("plain caf\u00e9", &out), "plain caf\u00e9");
  EXPECT_EQ(NormalizeNfc("cafe\u0301 x", &out), "caf\u00e9 x");
  EXPECT_EQ(NormalizeNfc("a\u0301\u0323", &out), "\u1ea1\u0301");  // marks change places
  EXPECT_EQ(NormalizeNfc("\u1112\u1161\u11ab", &out), "\ud55c");   // Hangul
  EXPECT_EQ(NormalizeNfc("\u0958", &out), "\u0915\u093c");         // excluded from composition
  EXPECT_EQ(NormalizeNfc("\u212b", &out), "\u00c5");
}

TEST_F(TokenizerTest, DecodeUndoesEncode) {
  const auto tokenizer = Loaded();
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(&random);
    ASSERT_EQ(tokenizer->Decode(Ids(*tokenizer, text)), text);
  }
  EXPECT_LT(Ids(*tokenizer, "the cat sat on the mat").size(), 10);
  EXPECT_EQ(tokenizer->vocab_size(), 290);
}

TEST_F(TokenizerTest, InvalidUtf8BecomesReplacementCharacters) {
  const auto tokenizer = Loaded();
  EXPECT_EQ(Ids(*tokenizer, "a\xff"), Ids(*tokenizer, "a\uFFFD"));
}

TEST_F(TokenizerTest, LongPiecesEncodeAsTheirDefinition) {
  // Against a plain loop: the pair of lowest rank, leftmost, until none is left.
  BpeModel::Alphabet bytes;
  for (int i = 0; i < 256; ++i) bytes.byte_ids[i] = i;
  std::mt19937 random(3);
  std::vector<BpeModel::Merge> merges;
  for (int32_t id = 256; id < 300; ++id) {
    auto symbol = [&] {
      return random() % 3 == 0 ? static_cast<int32_t>(256 + random() % (id - 255))
                               : static_cast<int32_t>('a' + random() % 3);
    };
    merges.push_back({symbol(), symbol(), id});
  }
  const BpeModel model(bytes, merges, {});
  for (const size_t length : {1, 2, 5, 63, 64, 65, 66, 200, 700}) {
    for (int trial = 0; trial < 20; ++trial) {
      std::string piece;
      for (size_t i = 0; i < length; ++i) piece.push_back(static_cast<char>('a' + random() % 3));
      std::vector<int32_t> expected(piece.begin(), piece.end());
      auto rank = [&](size_t i) {
        int best = 1 << 20;
        for (size_t m = 0; m < merges.size(); ++m) {  // the last listing of a pair counts
          if (merges[m].left == expected[i] && merges[m].right == expected[i + 1]) best = static_cast<int>(m);
        }
        return best;
      };
      while (true) {
        size_t at = 0;
        int best = 1 << 20;
        for (size_t i = 0; i + 1 < expected.size(); ++i) {
          if (rank(i) < best) best = rank(at = i);
        }
        if (best == 1 << 20) break;
        expected[at] = merges[best].result;
        expected.erase(expected.begin() + at + 1);
      }
      std::vector<int32_t> ids;
      model.Encode(piece, &ids);
      ASSERT_EQ(ids, expected) << piece;
    }
  }
}

TEST_F(TokenizerTest, TheEndOfADocumentIsFoundAsPublishedTokenizersSpellIt) {
  for (const char* name :
       {"<|endoftext|>", "<|end_of_text|>", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>", "</s>", "<eos>"}) {
    const auto tokenizer = Loaded([name](json& root) {
      root["added_tokens"] = json::array({Added(0, name)});
      json& vocab = root["model"]["vocab"];
      vocab.erase("<|endoftext|>");
      vocab[name] = 0;
    });
    EXPECT_EQ(tokenizer->end_of_document(), 0) << name;
  }
}

TEST_F(TokenizerTest, FilesBesideItAddTokensAndNameTheEnd) {
  const std::string folder = folder_.string();
  json root = json::parse(TrainedFile());
  root["added_tokens"] = json::array({Added(0, "<|first|>")});
  root["model"]["vocab"].erase("<|endoftext|>");
  root["model"]["vocab"]["<|first|>"] = 0;
  const auto next = static_cast<int32_t>(root["model"]["vocab"].size());
  const auto write = [&](const char* name, const json& contents) {
    ASSERT_TRUE(WriteFileAtomically(absl::StrCat(folder, "/", name), contents.dump()).ok());
  };
  write("tokenizer.json", root);
  write("tokenizer_config.json", {{"eos_token", {{"content", "<|turn|>"}}}, {"bos_token", nullptr}});
  write("added_tokens.json", {{"<|turn|>", next}, {"[x]", next + 1}});
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), next + 2);
  EXPECT_EQ((*tokenizer)->end_of_document(), next);
  EXPECT_TRUE((*tokenizer)->IsSpecial(next));
  EXPECT_FALSE((*tokenizer)->IsSpecial(next + 1));
  std::vector<int32_t> ids;
  EXPECT_TRUE((*tokenizer)->Encode("a<|turn|>[x]a", &ids).ok());
  const int32_t a = (*tokenizer)->TokenId("a");
  EXPECT_EQ(ids, (std::vector<int32_t>{a, next, next + 1, a}));
  EXPECT_EQ((*tokenizer)->Decode(ids), "a<|turn|>[x]a");
  write("added_tokens.json", {{"<|turn|>", next + 3}});
  tokenizer = Tokenizer::Load(folder);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(tokenizer.status().message().find("adds the token \"<|turn|>\" with the id"), std::string::npos)
      << tokenizer.status();
  // Where the settings list tokens, they count alone.
  write("tokenizer_config.json",
        {{"added_tokens_decoder", {{absl::StrCat(next), {{"content", "<y>"}, {"special", true}}}}}});
  tokenizer = Tokenizer::Load(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenId("<y>"), next);
  EXPECT_EQ((*tokenizer)->TokenId("<|turn|>"), -1);
}

TEST_F(TokenizerTest, SpecialTokensAreFoundInText) {
  const auto tokenizer = Loaded([](json& root) {
    root["added_tokens"].push_back(Added(290, "<|end"));
    json mask = Added(291, "[MASK]");
    mask["lstrip"] = mask["rstrip"] = true;
    root["added_tokens"].push_back(mask);
  });
  EXPECT_EQ(tokenizer->end_of_document(), 0);
  EXPECT_EQ(tokenizer->TokenId("[MASK]"), 291);
  EXPECT_EQ(tokenizer->TokenId("nonsense"), -1);
  const int32_t a = tokenizer->TokenId("a"), b = tokenizer->TokenId("b");
  EXPECT_EQ(Ids(*tokenizer, "a<|endoftext|>b"), (std::vector<int32_t>{a, 0, b}));  // the longest
  EXPECT_EQ(Ids(*tokenizer, "<|end<|endoftext|>"), (std::vector<int32_t>{290, 0}));
  EXPECT_EQ(Ids(*tokenizer, "a \u00a0[MASK]\n\tb"), (std::vector<int32_t>{a, 291, b}));
  EXPECT_EQ(tokenizer->Decode({a, 0, 291, 999, -1}), "a<|endoftext|>[MASK]");
}

TEST_F(TokenizerTest, IgnoreMergesTakesWholeWordsFirst) {
  auto with_word = [](bool ignore_merges) {
    return [=](json& root) {
      root["model"]["vocab"]["zq"] = 290;
      root["model"]["ignore_merges"] = ignore_merges;
    };
  };
  EXPECT_EQ(Ids(*Loaded(with_word(true)), "zq"), std::vector<int32_t>{290});
  EXPECT_EQ(Ids(*Loaded(with_word(false)), "zq").size(), 2);
}

TEST_F(TokenizerTest, BytesWithoutTokenAreLeftOutBeforeMerging) {
  auto without = [](json& root) { root["model"]["vocab"].erase("q"); };
  EXPECT_EQ(Ids(*Loaded(without), "qthqqeq"), Ids(*Loaded(), "the"));
  EXPECT_EQ(Ids(*Loaded(without), "q"), std::vector<int32_t>{});
  const std::string many(200, 'q');
  EXPECT_EQ(Ids(*Loaded(without), many + "th" + many + "e"), Ids(*Loaded(), "the"));
}

TEST_F(TokenizerTest, UnknownTokenStandsForBytesWithoutToken) {
  for (const bool fuse : {false, true}) {
    const auto tokenizer = Loaded([fuse](json& root) {
      root["model"]["vocab"].erase("~");
      root["model"]["unk_token"] = "<|endoftext|>";
      root["model"]["fuse_unk"] = fuse;
    });
    const int32_t quote = tokenizer->TokenId("\"");
    const std::vector<int32_t> expected =
        fuse ? std::vector<int32_t>{0, quote, 0} : std::vector<int32_t>{0, 0, quote, 0};
    EXPECT_EQ(Ids(*tokenizer, "~~\"~"), expected);
  }
}

TEST_F(TokenizerTest, MergesMayBeStrings) {
  const auto expected = Ids(*Loaded(), "the dog sat on the mat");
  const auto tokenizer = Loaded([](json& root) {
    for (json& merge : root["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  });
  EXPECT_EQ(Ids(*tokenizer, "the dog sat on the mat"), expected);
}

TEST_F(TokenizerTest, ThreadsShareOneTokenizer) {
  const auto tokenizer = Loaded();
  std::atomic<int> wrong = 0;
  auto work = [&](uint32_t seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 500; ++i) {
      const std::string text = RandomText(&random);
      if (tokenizer->Decode(Ids(*tokenizer, text)) != text) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(TokenizerTest, RefusesWhatItWouldNotReproduce) {
  ExpectRefused([](json& r) { r["model"]["type"] = "Unigram"; }, "Unigram");
  ExpectRefused([](json& r) { r["model"]["dropout"] = 0.1; }, "dropout");
  ExpectRefused([](json& r) { r["normalizers"] = nullptr; }, "the key \"normalizers\" is not known");
  ExpectRefused([](json& r) { r["model"]["ignore_merge"] = true; }, "model: the key \"ignore_merge\" is not known");
  ExpectRefused([](json& r) { r["added_tokens"][0]["strip"] = true; }, "added_tokens: the key \"strip\"");
  ExpectRefused([](json& r) { r["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix");
  ExpectRefused([](json& r) { r["normalizer"] = {{"type", "Lowercase"}}; }, "Lowercase");
  ExpectRefused([](json& r) { r["pre_tokenizer"] = nullptr; }, "pre_tokenizer");
  ExpectRefused([](json& r) { r["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "Metaspace");
  ExpectRefused(
      [](json& r) {
        r["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {r["pre_tokenizer"], r["pre_tokenizer"]}}};
      },
      "ByteLevel once");
  ExpectRefused([](json& r) { r["decoder"] = nullptr; }, "decoder");
  ExpectRefused([](json& r) { r["added_tokens"][0]["single_word"] = true; }, "single_word");
}

TEST_F(TokenizerTest, RefusesDamagedFiles) {
  ExpectRefused([](json& r) { r.erase("model"); }, "model");
  ExpectRefused([](json& r) { r["model"]["vocab"]["a"] = 0; }, "two tokens");
  ExpectRefused([](json& r) { r["model"]["vocab"]["a"] = -1; }, "whole number");
  ExpectRefused([](json& r) { r["model"]["vocab"]["new"] = uint64_t{1} << 40; }, "whole number");
  ExpectRefused([](json& r) { r["model"]["vocab"]["new"] = 16000000; }, "largest id");
  ExpectRefused([](json& r) { r["model"]["vocab"].erase("a"); }, "\"a\"");
  ExpectRefused([](json& r) { r["model"]["unk_token"] = "<unk>"; }, "unk_token");
  ExpectRefused([](json& r) { r["model"]["merges"].push_back({"t", "nowhere"}); }, "nowhere");
  ExpectRefused([](json& r) { r["model"]["merges"].push_back("one two three"); }, "neither");
  ExpectRefused([](json& r) { r["model"]["merges"].push_back({"a"}); }, "neither");
  ExpectRefused([](json& r) { r["added_tokens"][0]["id"] = 7; }, "reference gives it 0");
  ExpectRefused([](json& r) { r["added_tokens"].push_back(Added(500, "<x>")); }, "reference gives it 290");
  ExpectRefused([](json& r) { r["added_tokens"].push_back(r["added_tokens"][0]); }, "twice");
  EXPECT_EQ(ExitCodeOf(LoadText("{\"a\": 1, \"a\": 2}").status()), ExitCode::kData);
  EXPECT_EQ(ExitCodeOf(LoadText(std::string(100000, '[')).status()), ExitCode::kData);
  EXPECT_EQ(ExitCodeOf(LoadText(TrainedFile() + std::string("\0 more", 6)).status()), ExitCode::kData);
  EXPECT_EQ(ExitCodeOf(LoadText("{\"model\":" + std::string(100, '[') + std::string(100, ']') + "}").status()),
            ExitCode::kData);
  EXPECT_EQ(ExitCodeOf(Tokenizer::Load(folder_ / "absent.json").status()), ExitCode::kData);
}

// Under AddressSanitizer this finds reads past the end; in any build, crashes.
TEST_F(TokenizerTest, SurvivesRandomDamage) {
  std::mt19937 random(4);
  json small = json::parse(TrainedFile());
  small["pre_tokenizer"] = {{"type", "Sequence"},
                            {"pretokenizers",
                             {{{"type", "Split"},
                               {"pattern", {{"Regex", "(?i:ab)|[^\\s\\p{Lu}]{1,3}|\\s+(?!\\S)"}}},
                               {"behavior", "Isolated"},
                               {"invert", false}},
                              {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}}}};
  small["normalizer"] = {{"type", "NFC"}};
  const std::string whole = small.dump();
  int loaded = 0;
  for (int i = 0; i < 300; ++i) {
    std::string damaged = whole;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) {
      // Half the time in the part before the long vocabulary, where the structure is.
      const size_t at = random() % (random() % 2 == 0 ? whole.size() : std::min<size_t>(whole.size(), 300));
      switch (random() % 3) {
        case 0:
          damaged[at] = static_cast<char>(random());
          break;
        case 1:
          damaged.erase(at, random() % 8);
          break;
        default:
          damaged.insert(at, damaged.substr(random() % damaged.size(), random() % 16));
      }
    }
    auto tokenizer = LoadText(damaged);
    if (!tokenizer.ok()) {
      EXPECT_EQ(ExitCodeOf(tokenizer.status()), ExitCode::kData) << tokenizer.status();
      continue;
    }
    ++loaded;
    const std::string text = RandomText(&random);
    (*tokenizer)->Decode(Ids(**tokenizer, text));
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 300);
}

}  // namespace
}  // namespace trireme
