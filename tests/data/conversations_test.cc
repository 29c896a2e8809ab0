#include "data/chat/conversations.h"

#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <tuple>

#include "data/sampling/loader.h"
#include "tests/data/hostile_tokenizer.h"
#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr int kStart = 257, kEnd = 258, kMerged = 259;

// Bytes, <|endoftext|>, and marks of turns; `change` may alter the file.
std::shared_ptr<const Tokenizer> MakeTokenizer(const std::function<void(Json&)>& change = {}) {
  const TempFolder folder;
  WriteByteTokenizer(folder / "tokenizer.json");
  Json json = Json::parse(ReadText(folder / "tokenizer.json"));
  for (const auto& [text, id] : {std::pair("<|im_start|>", kStart), std::pair("<|im_end|>", kEnd)}) {
    Json token = json["added_tokens"][0];
    token["content"] = text;
    token["id"] = id;
    json["added_tokens"].push_back(token);
    json["model"]["vocab"][text] = id;
  }
  if (change) change(json);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Parse(json.dump(), "test");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// The text with what is learned in brackets; <> for marks.
std::string Shown(const Tokenizer& tokenizer, const MaskedTokens& tokens) {
  std::string text;
  bool inside = false;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (inside != (tokens.learned[i] != 0)) text += inside ? "]" : "[";
    inside = tokens.learned[i] != 0;
    absl::StrAppend(&text, tokenizer.TokenBytes(tokens.ids[i]));
  }
  return text + (inside ? "]" : "");
}

std::string Masked(const Tokenizer& tokenizer, const std::string& text, const std::vector<ByteRange>& ranges) {
  const absl::StatusOr<MaskedTokens> tokens = EncodeMasked(tokenizer, text, ranges);
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return tokens.ok() ? Shown(tokenizer, *tokens) : "";
}

TEST(EncodeMasked, ByPositionWithTheEndOfTheTurn) {
  const auto tokenizer = MakeTokenizer();
  EXPECT_EQ(Masked(*tokenizer, "abcdef", {{1, 3}, {4, 5}}), "a[bc]d[e]f");
  EXPECT_EQ(Masked(*tokenizer, "ab", {}), "ab");
  // The mark behind the range belongs to it; the same mark elsewhere does not.
  EXPECT_EQ(Masked(*tokenizer, "q<|im_end|>a<|im_end|>b<|im_end|>", {{11, 12}}), "q<|im_end|>[a<|im_end|>]b<|im_end|>");
  // A range that ends in its mark takes no other.
  EXPECT_EQ(Masked(*tokenizer, "a<|im_end|><|im_start|>b", {{0, 11}}), "[a<|im_end|>]<|im_start|>b");
  EXPECT_EQ(Masked(*tokenizer, "a<|im_end|>\n<|im_start|>b", {{0, 12}}), "[a<|im_end|>\n]<|im_start|>b");
}

TEST(EncodeMasked, ATokenThatReachesIntoTheRangeIsLearned) {
  const auto tokenizer = MakeTokenizer([](Json& json) {
    json["model"]["vocab"]["bc"] = kMerged;
    json["model"]["merges"].push_back("b c");
  });
  EXPECT_EQ(Masked(*tokenizer, "abcd", {{2, 3}}), "a[bc]d");
}

TEST(EncodeMasked, ComposedFormsAreFoundAgain) {
  const auto tokenizer = MakeTokenizer([](Json& json) { json["normalizer"] = {{"type", "NFC"}}; });
  const std::string decomposed = "e\xCC\x81", composed = "\xC3\xA9";  // e with an acute accent, as two and as one
  EXPECT_EQ(Masked(*tokenizer, decomposed + decomposed + "x", {{3, 6}}), composed + "[" + composed + "]x");
}

TEST(EncodeMasked, SpacesOfSentencePieceAndOfAddedTokens) {
  const auto metaspace =
      MakeTokenizer([](Json& json) { json["added_tokens"][2]["lstrip"] = json["added_tokens"][2]["rstrip"] = true; });
  EXPECT_EQ(Masked(*metaspace, "ab  <|im_end|>\n c", {{1, 14}}), "a[b<|im_end|>]c");
}

TEST(EncodeMasked, RefusesATokenizerThatRewritesText) {
  const auto tokenizer = MakeTokenizer([](Json& json) {
    json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "b"}};
  });
  EXPECT_ERROR(EncodeMasked(*tokenizer, "xay", {}).status(), ExitCode::kData, "where the text goes on \"ay\"");
}

SampleTokenizer MakeSampleTokenizer(std::vector<int64_t> prefix = {}, int32_t end_id = kEndOfDocument) {
  SampleTokenizerOptions options;
  options.tokenizer = MakeTokenizer();
  options.no_template_reason = Error(ExitCode::kData, "no template here");
  options.prefix_ids = std::move(prefix);
  options.end_id = end_id;
  return SampleTokenizer(options);
}

std::string ShownSample(const SampleTokenizer& tokenizer, const std::string& line) {
  const absl::StatusOr<MaskedTokens> tokens = tokenizer.Encode(ParseConversation(line, "f:1").value());
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return tokens.ok() ? Shown(tokenizer.tokenizer(), *tokens) : "";
}

TEST(SampleTokenizer, PromptsAreGivenAndCompletionsEnd) {
  const SampleTokenizer plain = MakeSampleTokenizer();
  EXPECT_EQ(ShownSample(plain, R"({"prompt": "1+1=", "completion": "2"})"), "1+1=[2<|endoftext|>]");
  EXPECT_EQ(ShownSample(plain, R"({"text": "ab"})"), "[ab<|endoftext|>]");
  EXPECT_EQ(ShownSample(plain, R"({"text": "ab<|endoftext|>"})"), "[ab<|endoftext|>]");
  const SampleTokenizer prefixed = MakeSampleTokenizer({kStart});
  EXPECT_EQ(ShownSample(prefixed, R"({"text": "ab"})"), "<|im_start|>[ab<|endoftext|>]");
  EXPECT_EQ(ShownSample(prefixed, R"({"prompt": "<|im_start|>a", "completion": "b"})"),
            "<|im_start|>a[b<|endoftext|>]");
}

TEST(SampleTokenizer, RefusesWithoutTemplateOrEndNamingTheLine) {
  const ConversationSample chat =
      ParseConversation(R"({"messages": [{"role": "user", "content": "a"}]})", "f:3").value();
  EXPECT_ERROR(MakeSampleTokenizer().Encode(chat).status(), ExitCode::kData, "f:3: no template here");
  const ConversationSample text = ParseConversation(R"({"text": "a"})", "f:4").value();
  EXPECT_ERROR(MakeSampleTokenizer({}, -1).Encode(text).status(), ExitCode::kData, "f:4: the tokenizer names no token");
}

constexpr char kChatMl[] =
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% if message.content == 'raise' %}{{ raise_exception('do not say that') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

SampleTokenizer MakeChatTokenizer(ConversationData::TrainOn train_on = ConversationData::ASSISTANT) {
  SampleTokenizerOptions options;
  options.tokenizer = MakeTokenizer();
  options.chat_template = ChatTemplate::Parse(kChatMl, "chatml").value();
  options.end_id = kEnd;
  options.train_on = train_on;
  return SampleTokenizer(options);
}

TEST(SampleTokenizer, AssistantTurnsAreLearnedUpToTheirEnd) {
  const SampleTokenizer chat = MakeChatTokenizer();
  const std::string q = R"({"role": "user", "content": "q"})", a = R"({"role": "assistant", "content": "a"})",
                    b = R"({"role": "assistant", "content": "b"})";
  const std::string expected =
      "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n<|im_start|>user\nq<|im_end|>\n"
      "<|im_start|>assistant\n[b<|im_end|>]\n";
  const auto messages = [](const std::vector<std::string>& list) {
    return absl::StrCat("[", absl::StrJoin(list, ", "), "]");
  };
  EXPECT_EQ(ShownSample(chat, absl::StrCat("{\"messages\": ", messages({q, a, q, b}), "}")), expected);
  const std::string last_only = absl::StrReplaceAll(expected, {{"[a<|im_end|>]", "a<|im_end|>"}});
  EXPECT_EQ(
      ShownSample(chat, absl::StrCat("{\"prompt\": ", messages({q, a, q}), ", \"completion\": ", messages({b}), "}")),
      last_only);
  const std::string unweighted = R"({"role": "assistant", "content": "a", "weight": 0})";
  EXPECT_EQ(ShownSample(chat, absl::StrCat("{\"messages\": ", messages({q, unweighted, q, b}), "}")), last_only);
  EXPECT_EQ(
      ShownSample(MakeChatTokenizer(ConversationData::ALL), absl::StrCat("{\"messages\": ", messages({q, a}), "}")),
      "[<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n]");
}

TEST(SampleTokenizer, APromptOfMessagesMayNotBeAnEndedConversation) {
  SampleTokenizerOptions options;
  options.tokenizer = MakeTokenizer();
  options.chat_template = ChatTemplate::Parse(
                              "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}"
                              "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% else %}<|endoftext|>"
                              "{% endif %}",
                              "T")
                              .value();
  EXPECT_EQ(
      ShownSample(
          SampleTokenizer(options),
          R"({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]})"),
      "<|im_start|>user:q<|im_end|><|im_start|>assistant:[a<|im_end|><|endoftext|>]");
}

TEST(SampleTokenizer, ATemplateThatRaisesIsNamedWithTheLine) {
  const ConversationSample sample =
      ParseConversation(R"({"messages": [{"role": "user", "content": "raise"}]})", "f:9").value();
  const absl::Status status = MakeChatTokenizer().Encode(sample).status();
  EXPECT_ERROR(status, ExitCode::kData, "f:9: ");
  EXPECT_ERROR(status, ExitCode::kData, "do not say that");
}

absl::StatusOr<ConversationSet> Open(const std::string& lines, const ConversationData& settings, int64_t length = 8) {
  const TempFolder folder;
  WriteText(folder / "a.jsonl", lines);
  ConversationData config = settings;
  config.add_path(folder / "a.jsonl");
  return OpenConversations(config, length, MakeSampleTokenizer());
}

std::string TextLine(const std::string& text) { return "{\"text\": \"" + text + "\"}\n"; }

// Every document, with what is learned in brackets.
std::multiset<std::string> DocumentsOf(const PackedSequences& packed) {
  const auto tokenizer = MakeTokenizer();
  std::multiset<std::string> documents;
  for (int64_t sequence = 0; sequence < packed.size(); ++sequence) {
    for (const PackedDocument& document : packed.Documents(sequence)) {
      MaskedTokens tokens;
      for (int64_t i = document.begin; i < document.begin + document.length; ++i) {
        tokens.ids.push_back(packed.id(i));
        tokens.learned.push_back(packed.learned(i));
      }
      documents.insert(Shown(*tokenizer, tokens));
    }
  }
  return documents;
}

TEST(OpenConversations, OverLongSamplesAreDroppedCutOrSplitAndCounted) {
  const std::string lines = TextLine("abc") + TextLine("0123456789abc") + TextLine("de");
  ConversationData settings;
  const ConversationSet dropped = Open(lines, settings).value();
  EXPECT_EQ(DocumentsOf(*dropped.train.sequences),
            (std::multiset<std::string>{"a[bc<|endoftext|>]", "d[e<|endoftext|>]"}));
  EXPECT_EQ(dropped.train.counts.read, 3);
  EXPECT_EQ(dropped.train.counts.kept, 2);
  EXPECT_EQ(dropped.train.counts.over_long, 1);
  EXPECT_EQ(dropped.train.counts.dropped_over_long, 1);
  EXPECT_EQ(dropped.train.counts.dropped_tokens, 14);
  EXPECT_EQ(
      Describe(dropped.train),
      "2 samples in 1 sequences of 8 tokens (87.5 % full), 5 of 7 tokens trained; dropped: 1 too long (14 tokens)");

  settings.set_over_long(ConversationData::TRUNCATE);
  const ConversationSet cut = Open(lines, settings).value();
  EXPECT_EQ(DocumentsOf(*cut.train.sequences),
            (std::multiset<std::string>{"0[1234567]", "a[bc<|endoftext|>]", "d[e<|endoftext|>]"}));
  EXPECT_EQ(cut.train.counts.dropped_tokens, 6);
  EXPECT_EQ(cut.train.counts.without_end, 1);
  EXPECT_EQ(cut.train.counts.kept, 3);

  settings.set_over_long(ConversationData::SPLIT);
  const ConversationSet split = Open(lines, settings).value();
  EXPECT_EQ(
      DocumentsOf(*split.train.sequences),
      (std::multiset<std::string>{"0[1234567]", "7[89abc<|endoftext|>]", "a[bc<|endoftext|>]", "d[e<|endoftext|>]"}));
  EXPECT_EQ(split.train.sequences->num_targets(), 3 + 13 + 2);
  EXPECT_EQ(split.train.counts.dropped_tokens, 0);
}

TEST(OpenConversations, SamplesThatTeachNothingAreCountedAndNothingAtAllIsRefused) {
  const std::string lines =
      "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"prompt\": \"q\", \"completion\": \"\"}\n"
      "{\"prompt\": \"0123456789\", \"completion\": \"a\"}\n";
  ConversationData settings;
  settings.set_over_long(ConversationData::TRUNCATE);
  const ConversationSet set = Open(lines, settings).value();
  EXPECT_EQ(set.train.counts.empty, 1);
  EXPECT_EQ(set.train.counts.dropped_over_long, 1);  // What is left of it is given.
  EXPECT_EQ(set.train.counts.kept, 1);
  EXPECT_EQ(set.validation.sequences, nullptr);
  EXPECT_ERROR(Open("{\"text\": \"\"}\n\n", {}).status(), ExitCode::kData, "carries loss: of 1 samples");
  EXPECT_ERROR(Open("", {}).status(), ExitCode::kData, "carries loss");
}

TEST(OpenConversations, AConversationWithoutAnswersIsCounted) {
  const TempFolder folder;
  WriteText(
      folder / "a.jsonl",
      "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n{\"messages\": []}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n");
  ConversationData config;
  config.add_path(folder / "a.jsonl");
  const ConversationSet set = OpenConversations(config, 64, MakeChatTokenizer()).value();
  EXPECT_EQ(set.train.counts.unlearned, 1);
  EXPECT_EQ(set.train.counts.empty, 1);
  EXPECT_EQ(set.train.counts.kept, 1);
  EXPECT_EQ(set.train.counts.without_end, 0);
  EXPECT_EQ(set.train.sequences->num_targets(), 2);
}

TEST(OpenConversations, ValidationIsChosenByTheSampleNotByItsPlace) {
  std::string forward, backward;
  for (int i = 0; i < 200; ++i) {
    forward += TextLine(absl::StrCat(i));
    backward = TextLine(absl::StrCat(i)) + backward;
  }
  ConversationData settings;
  settings.set_validation_fraction(0.25);
  const ConversationSet a = Open(forward, settings).value(), b = Open(backward, settings).value();
  EXPECT_EQ(DocumentsOf(*a.validation.sequences), DocumentsOf(*b.validation.sequences));
  EXPECT_EQ(a.train.counts.read + a.validation.counts.read, 200);
  EXPECT_GT(a.validation.counts.read, 25);
  EXPECT_LT(a.validation.counts.read, 80);
  EXPECT_EQ(a.train.sequences->Digest(), Open(forward, settings)->train.sequences->Digest());
  EXPECT_NE(a.train.sequences->Digest(), b.train.sequences->Digest());
}

TEST(OpenConversations, CopiesOfASampleStayInOneSplit) {
  std::string lines;
  for (int i = 0; i < 100; ++i)
    absl::StrAppend(&lines, TextLine(absl::StrCat(i)), "{\"id\": ", i, ",  \"text\":\"", i, "\"} \r\n");
  ConversationData settings;
  settings.set_validation_fraction(0.25);
  const ConversationSet set = Open(lines, settings).value();
  const auto documents = DocumentsOf(*set.validation.sequences);
  EXPECT_EQ(documents.size() % 2, 0u);
  for (const std::string& document : documents)
    EXPECT_EQ(std::count(documents.begin(), documents.end(), document), 2) << document;
}

TEST(OpenConversations, NamesTheEndsThatAreTaught) {
  EXPECT_EQ(Open(TextLine("a"), {})->train.ends, std::set<int32_t>{kEndOfDocument});
  // Where a sample is cut off, its last token ends nothing.
  ConversationData settings;
  settings.set_over_long(ConversationData::TRUNCATE);
  EXPECT_EQ(Open(TextLine("abcdefghijkl"), settings)->train.ends, std::set<int32_t>{});
}

TEST(OpenConversations, RefusesSettingsOutOfRange) {
  EXPECT_ERROR(OpenConversations({}, 8, MakeSampleTokenizer()).status(), ExitCode::kConfig, "path: none given");
  ConversationData settings;
  settings.set_validation_fraction(1);
  EXPECT_ERROR(Open(TextLine("a"), settings).status(), ExitCode::kConfig, "must be in [0, 1)");
  settings.set_validation_fraction(0.5);
  settings.add_validation_path("b");
  EXPECT_ERROR(Open(TextLine("a"), settings).status(), ExitCode::kConfig, "give one of them");
  EXPECT_ERROR(Open(TextLine("a"), {}, 1).status(), ExitCode::kConfig, "sequence_length");
}

// Tokenized on several threads: there are enough lines for them.
TEST(Conversations, WhatGoesWrongInAThreadIsAnError) {
  const TempFolder folder;
  SampleTokenizerOptions options;
  options.tokenizer = std::make_shared<HostileTokenizer>(MakeTokenizer());
  options.end_id = kEnd;
  const SampleTokenizer tokenizer(options);
  for (const auto& [word, code, part] : {std::tuple("EXHAUST", ExitCode::kOutOfMemory, "out of host memory"),
                                         std::tuple("REFUSE", ExitCode::kData, "too hard a text")}) {
    std::string lines;
    for (int i = 0; i < 300; ++i) absl::StrAppend(&lines, "{\"text\": \"", i % 100 == 77 ? word : "fine", "\"}\n");
    WriteText(folder / "lines.jsonl", lines);
    ConversationData config;
    config.add_path(folder / "lines.jsonl");
    EXPECT_ERROR(OpenConversations(config, 16, tokenizer).status(), code, part);
  }
}

}  // namespace
}  // namespace trireme
