#include "trainer/prompt.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/data/test_corpus.h"
#include "trainer/evaluate.h"

namespace trireme {
namespace {

// As the model directories have them; what they give is from Transformers' apply_chat_template.
constexpr char kWithDefault[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou "
    "are a helper<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
constexpr char kWithout[] =
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- "
    "endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

TEST(ChatTemplate, ChatMlWithItsOwnSystemMessage) {
  EXPECT_EQ(
      RenderChat(kWithDefault, std::nullopt, " Hi\n").value(),
      "<|im_start|>system\nYou are a helper<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(RenderChat(kWithDefault, "Be brief", "Hi").value(),
            "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, ChatMlWithout) {
  EXPECT_EQ(RenderChat(kWithout, std::nullopt, "Hi").value(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(RenderChat(kWithout, "", "Hi").value(),
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, OthersAreRefused) {
  for (const char* other :
       {"", "[INST] {{ messages[0].content }} [/INST]", "{{ bos_token }}{{ '<|im_start|>assistant\\n' }}<|im_end|>"}) {
    const absl::Status status = RenderChat(other, std::nullopt, "Hi").status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
    EXPECT_NE(status.message().find("not ChatML"), absl::string_view::npos) << status;
  }
}

TEST(ChatTemplate, StandsInEitherFile) {
  const TempFolder folder;
  EXPECT_EQ(ExitCodeOf(ReadChatTemplate(folder / "").status()), ExitCode::kData);
  WriteText(folder / "tokenizer_config.json", R"({"chat_template": "old"})");
  EXPECT_EQ(ReadChatTemplate(folder / "").value(), "old");
  WriteText(folder / "tokenizer_config.json",
            R"({"chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]})");
  EXPECT_EQ(ReadChatTemplate(folder / "").value(), "b");
  WriteText(folder / "chat_template.jinja", "new");
  EXPECT_EQ(ReadChatTemplate(folder / "").value(), "new");
}

TEST(Prompt, PrefixOfThePostProcessor) {
  const TempFolder folder;
  WriteByteTokenizer(folder / "tokenizer.json");
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Load(folder / "tokenizer.json");
  EXPECT_TRUE(PrefixIds(folder / "", *tokenizer).value().empty());
  nlohmann::json file = nlohmann::json::parse(ReadText(folder / "tokenizer.json"));
  const nlohmann::json special = {{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}},
                       text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  file["post_processor"] = {{"type", "TemplateProcessing"}, {"single", {special, text, special}}};
  WriteText(folder / "tokenizer.json", file.dump());
  EXPECT_EQ(PrefixIds(folder / "", *tokenizer).value(), std::vector<int64_t>{kEndOfDocument});
}

TEST(TextStream, GivesWholeCharacters) {
  const TempFolder folder;
  WriteByteTokenizer(folder / "tokenizer.json");
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Load(folder / "tokenizer.json");
  TextStream stream(*tokenizer);
  std::vector<std::string> pieces;  // of each byte, whose id is its value
  for (const char byte : std::string("a\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80\xFFz\xE6\x97"))
    pieces.push_back(stream.Push(static_cast<unsigned char>(byte)));
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "", "\u00e9", "", "", "\u65e5", "", "", "", "\U0001f600", "\ufffd",
                                              "z", "", ""}));
  EXPECT_EQ(stream.Finish(), "\ufffd");
}

TEST(Questions, AreReadWithTheirLines) {
  const TempFolder folder;
  WriteText(folder / "q.jsonl",
            "{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n\n"
            "{\"question\": \"d\", \"choices\": [\"e\"], \"answer\": 0}\n");
  const std::vector<Question> questions = ReadQuestions(folder / "q.jsonl").value();
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].choices, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(questions[0].answer, 1);
  EXPECT_EQ(questions[1].prompt, "d");
  for (const auto& [line, reason] : std::vector<std::pair<std::string, std::string>>{
           {"{", "is no JSON object"},
           {"[]", "is no JSON object"},
           {"{\"choices\": [\"e\"], \"answer\": 0}", "has no \"prompt\" text"},
           {"{\"prompt\": \"a\", \"choices\": [], \"answer\": 0}", "has no \"choices\" list"},
           {"{\"prompt\": \"a\", \"choices\": [\"\"], \"answer\": 0}", "has a choice that is no text"},
           {"{\"prompt\": \"a\", \"choices\": [\"b\"]}", "has no \"answer\" index"},
           {"{\"prompt\": \"a\", \"choices\": [\"b\"], \"answer\": 1}", "has the answer 1 for 1 choices"}}) {
    WriteText(folder / "q.jsonl", "\n" + line + "\n");
    const absl::Status status = ReadQuestions(folder / "q.jsonl").status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
    EXPECT_NE(status.message().find("line 2 " + reason), absl::string_view::npos) << status;
  }
}

TEST(Questions, WhiteSpaceGoesWithTheChoice) {
  using Pair = std::pair<std::string, std::string>;
  EXPECT_EQ(JoinChoice("a", "b"), Pair("a", " b"));
  EXPECT_EQ(JoinChoice("a ", "b"), Pair("a", " b"));
  EXPECT_EQ(JoinChoice("a\n", "b"), Pair("a", "\nb"));
  EXPECT_EQ(JoinChoice("a", " b"), Pair("a", " b"));
}

}  // namespace
}  // namespace trireme
