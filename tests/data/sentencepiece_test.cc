// SentencePiece's model files: how pieces become ids, and files that are refused. The oracle vocabularies_oracle.py
// compares ids with the package's.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <limits>

#include "data/tokenizer/sentencepiece.pb.h"
#include "data/tokenizer/tokenizer.h"

namespace trireme {
namespace {

enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

class SentencePiece : public testing::Test {
 protected:
  SentencePiece() {
    model_.mutable_trainer_spec()->set_model_type(2);
    model_.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);
    Add("<unk>", 0, kUnknown);
    Add("<s>", 0, kControl);
    Add("</s>", 0, kControl);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void Add(const std::string& piece, float score, int type = kNormal) {
    auto& added = *model_.add_pieces();
    added.set_piece(piece);
    added.set_score(score);
    added.set_type(type);
  }
  void AddBytes() {
    model_.mutable_trainer_spec()->set_byte_fallback(true);
    char name[8];
    for (int byte = 0; byte < 256; ++byte) {
      std::snprintf(name, sizeof(name), "<0x%02X>", byte);
      Add(name, 0, kByte);
    }
  }
  // Single characters come last, as the trainer puts them.
  void AddCharacters() {
    for (const char* character : {"▁", "a", "b", "c"}) Add(character, -100);
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load() {
    EXPECT_TRUE(WriteFileAtomically(path_, model_.SerializeAsString()).ok());
    return Tokenizer::Load(path_);
  }
  // The text, cut as its tokens cut it, each as the file spells it.
  std::string Pieces(const std::string& text) {
    const auto tokenizer = Load();
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    if (!tokenizer.ok()) return "";
    std::vector<int32_t> ids;
    EXPECT_TRUE((*tokenizer)->Encode(text, &ids).ok());
    decoded_ = (*tokenizer)->Decode(ids);
    std::string pieces;
    for (const int32_t id : ids) absl::StrAppend(&pieces, pieces.empty() ? "" : "|", model_.pieces(id).piece());
    return pieces;
  }
  void ExpectRefused(const std::string& why) {
    const auto tokenizer = Load();
    ASSERT_FALSE(tokenizer.ok()) << "accepted; expected: " << why;
    EXPECT_EQ(ExitCodeOf(tokenizer.status()), ExitCode::kData);
    EXPECT_NE(tokenizer.status().message().find(why), std::string::npos) << tokenizer.status();
  }

  SentencePieceModel model_;
  std::string path_ = testing::TempDir() + "sentencepiece_test." + std::to_string(getpid());
  std::string decoded_;
};

TEST_F(SentencePiece, TheBestScoreIsJoinedFirst) {
  Add("ab", -2);
  Add("bc", -1);
  Add("abc", -3);
  AddCharacters();
  EXPECT_EQ(Pieces("abab"), "▁|ab|ab");
  EXPECT_EQ(Pieces("abc"), "▁|abc") << "bc, then a with it";
  model_.mutable_pieces(5)->set_type(kControl);
  EXPECT_EQ(Pieces("abc"), "▁|a|bc");
}

TEST_F(SentencePiece, OfEqualScoresTheLeftmostIsJoined) {
  Add("bc", -1);
  Add("ab", -1);
  AddCharacters();
  EXPECT_EQ(Pieces("abc"), "▁|ab|c");
  EXPECT_EQ(Pieces("cbcab"), "▁|c|bc|ab");
}

TEST_F(SentencePiece, SpacesArePiecesAndOneComesFirst) {
  Add("▁a", -1);
  Add("▁▁", -2);
  AddCharacters();
  EXPECT_EQ(Pieces("a  a"), "▁a|▁|▁a");
  EXPECT_EQ(decoded_, "a  a");
  EXPECT_EQ(Pieces("   b"), "▁▁|▁▁|b");
  EXPECT_EQ(decoded_, "   b");
  EXPECT_EQ(Pieces(""), "");
  model_.mutable_normalizer_spec()->set_add_dummy_prefix(false);
  EXPECT_EQ(Pieces("a a"), "a|▁a");
  EXPECT_EQ(decoded_, "a a");
  model_.mutable_normalizer_spec()->set_add_dummy_prefix(true);
  model_.mutable_normalizer_spec()->set_remove_extra_whitespaces(true);
  EXPECT_EQ(Pieces("  a   a  "), "▁a|▁a");
  EXPECT_EQ(Pieces("   "), "");
}

TEST_F(SentencePiece, WhatHasNoPieceIsBytesOrUnknown) {
  AddCharacters();
  EXPECT_EQ(Pieces("aééb"), "▁|a|<unk>|b") << "one for a run";
  AddBytes();
  EXPECT_EQ(Pieces("aéb"), "▁|a|<0xC3>|<0xA9>|b");
  EXPECT_EQ(decoded_, "aéb");
}

TEST_F(SentencePiece, UserDefinedPiecesAreFoundControlTokensNot) {
  Add("ab", -1);
  Add("b▁", 0, kUserDefined);
  AddCharacters();
  AddBytes();
  EXPECT_EQ(Pieces("ab a"), "▁|a|b▁|a") << "before any joining";
  EXPECT_EQ(Pieces("<s>"), "▁|<0x3C>|<0x73>|<0x3E>");
  const auto tokenizer = Load();
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_TRUE((*tokenizer)->IsSpecial(1));
  EXPECT_FALSE((*tokenizer)->IsSpecial(4));
  EXPECT_EQ((*tokenizer)->end_of_document(), 2);
  EXPECT_EQ((*tokenizer)->TokenId("<s>"), 1);
}

// As Transformers 5.23's LlamaTokenizer gives them: the space comes before the whole text only, and not where that
// begins with a token.
TEST_F(SentencePiece, FilesOfTransformersBesideItAddTokens) {
  Add("ab", -1);
  AddCharacters();
  AddBytes();
  const auto next = static_cast<int32_t>(model_.pieces_size());
  const std::string folder = path_ + ".d";
  std::filesystem::create_directory(folder);
  const auto write = [&](const char* name, const std::string& contents) {
    ASSERT_TRUE(WriteFileAtomically(absl::StrCat(folder, "/", name), contents).ok());
  };
  write("tokenizer.model", model_.SerializeAsString());
  write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>", "legacy": false})");
  write("added_tokens.json", absl::StrCat("{\"<|end|>\": ", next + 1, ", \"<|start|>\": ", next, "}"));
  auto tokenizer = Tokenizer::Load(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto encode = [&](const std::string& text) {
    std::vector<int32_t> ids;
    EXPECT_TRUE((*tokenizer)->Encode(text, &ids).ok());
    return ids;
  };
  const int32_t space = (*tokenizer)->TokenId("▁"), ab = (*tokenizer)->TokenId("ab"), a = (*tokenizer)->TokenId("a");
  EXPECT_EQ(encode("<|start|>ab<|end|> a"), (std::vector<int32_t>{next, ab, next + 1, space, a}));
  EXPECT_EQ(encode("ab<|end|>ab"), (std::vector<int32_t>{space, ab, next + 1, ab}));
  EXPECT_EQ(encode("a</s>"), (std::vector<int32_t>{space, a, 2}));
  EXPECT_TRUE((*tokenizer)->IsSpecial(next + 1));
  EXPECT_EQ((*tokenizer)->vocab_size(), next + 2);
  write("tokenizer_config.json", R"({"tokenizer_class": "GemmaTokenizer"})");
  tokenizer = Tokenizer::Load(folder);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(tokenizer.status().message().find("read for LlamaTokenizer only"), std::string::npos) << tokenizer.status();
  std::filesystem::remove_all(folder);
}

TEST_F(SentencePiece, WhatIsNotReproducedIsRefused) {
  AddCharacters();
  const SentencePieceModel good = model_;
  ASSERT_TRUE(Load().ok());
  const auto refused = [&](const std::function<void()>& change, const std::string& why) {
    model_ = good;
    change();
    ExpectRefused(why);
  };
  refused([&] { model_.mutable_trainer_spec()->set_model_type(1); }, "a unigram model");
  refused([&] { model_.mutable_trainer_spec()->clear_model_type(); }, "a unigram model");
  refused([&] { model_.mutable_trainer_spec()->set_model_type(9); }, "unknown kind");
  refused([&] { model_.mutable_normalizer_spec()->set_precompiled_charsmap("x"); }, "precompiled_charsmap");
  refused([&] { model_.mutable_normalizer_spec()->set_escape_whitespaces(false); }, "escape_whitespaces");
  refused([&] { model_.mutable_trainer_spec()->set_treat_whitespace_as_suffix(true); }, "suffix");
  refused([&] { model_.mutable_trainer_spec()->set_byte_fallback(true); }, "not all bytes");
  refused([&] { Add("<0x41>", 0, kByte); }, "without byte_fallback");
  refused([&] { Add("a", 0); }, "stands twice");
  refused([&] { Add("", 0); }, "is empty");
  refused([&] { Add("\xFF", 0); }, "not valid UTF-8");
  refused([&] { Add("cc", 0, 7); }, "unknown type 7");
  refused([&] { Add("cc", std::numeric_limits<float>::quiet_NaN()); }, "has the score nan");
  refused([&] { Add("cc", 0, kUnused); }, "marked unused");
  refused([&] { Add("cx", 0); }, "a character that is no piece");
  refused([&] { Add("x", 0, kControl); }, "control token of one character");
  refused([&] { Add("c c", 0, kUserDefined); }, "holds a space");
  refused([&] { Add("<unk2>", 0, kUnknown); }, "two pieces are of the type unknown");
  refused([&] { Add(std::string(513, 'a'), 0); }, "has 513 bytes");
  refused([&] { model_.mutable_pieces(0)->set_type(kControl); }, "no piece is of the type unknown");
}

TEST_F(SentencePiece, CutFilesAreRefused) {
  AddCharacters();
  const std::string whole = model_.SerializeAsString();
  for (size_t size = 1; size < whole.size(); size += 3) {
    ASSERT_TRUE(WriteFileAtomically(path_, whole.substr(0, size)).ok());
    EXPECT_FALSE(Tokenizer::Load(path_).ok()) << size;
  }
}

}  // namespace
}  // namespace trireme
