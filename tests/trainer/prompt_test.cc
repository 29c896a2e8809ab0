#include "models/source/prompt.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/data/test_corpus.h"
#include "trainer/evaluate/evaluate.h"

namespace trireme {
namespace {

TEST(Prompt, ChatUsesTheModelsTemplate) {
  const TempFolder folder;
  absl::Status status = ChatPrompt(LoadChatTemplate(folder / ""), std::nullopt, "Hi").status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
  EXPECT_NE(status.message().find("leave --chat out"), absl::string_view::npos) << status;
  WriteText(folder / "tokenizer_config.json", R"({"bos_token": "<s>"})");
  WriteText(folder / "chat_template.jinja",
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}");
  EXPECT_EQ(ChatPrompt(LoadChatTemplate(folder / ""), std::nullopt, " Hi\n").value(), "<s>[user] Hi\n[assistant]");
  EXPECT_EQ(ChatPrompt(LoadChatTemplate(folder / ""), "", "Hi").value(), "<s>[system][user]Hi[assistant]");
  WriteText(folder / "chat_template.jinja", "{{ raise_exception('no') }}");
  status = ChatPrompt(LoadChatTemplate(folder / ""), std::nullopt, "Hi").status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
  EXPECT_NE(status.message().find("chat_template.jinja:1: the template raises: no"), absl::string_view::npos) << status;
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
  // The name stands for what the file says it stands for.
  file["post_processor"]["special_tokens"] = {{"<|endoftext|>", {{"id", "<|endoftext|>"}, {"ids", {3, 4}}}}};
  WriteText(folder / "tokenizer.json", file.dump());
  EXPECT_EQ(PrefixIds(folder / "", *tokenizer).value(), (std::vector<int64_t>{3, 4}));
  file["post_processor"] = {{"type", "RobertaProcessing"}};
  WriteText(folder / "tokenizer.json", file.dump());
  EXPECT_EQ(ExitCodeOf(PrefixIds(folder / "", *tokenizer).status()), ExitCode::kData);
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

// Files that anyone may have written: an error of the data, never an exception.
TEST(Prompt, APostProcessorOfWrongTypesIsRefused) {
  const TempFolder folder;
  WriteByteTokenizer(folder / "tokenizer.json");
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Load(folder / "tokenizer.json");
  nlohmann::json file = nlohmann::json::parse(ReadText(folder / "tokenizer.json"));
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": 5})", "has no type"},
      {R"(5)", "has no type"},
      {R"([])", "has no type"},
      {R"({"type": "Sequence", "processors": 5})", "is a Sequence without processors"},
      {R"({"type": "Sequence", "processors": [{"type": []}]})", "has no type"},
      {R"({"type": "TemplateProcessing", "single": "A"})", "without a list"},
      {R"({"type": "TemplateProcessing", "single": [7]})", "has a piece that is no object"},
      {R"({"type": "TemplateProcessing", "single": [{"SpecialToken": 5}]})", "has a SpecialToken without id"},
      {R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 5}}]})", "has a SpecialToken without id"},
      {R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}],
           "special_tokens": {"x": {"ids": [-1]}}})",
       "gives x an id that is none of the tokenizer's"},
      {R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}],
           "special_tokens": {"x": {"ids": [100000]}}})",
       "gives x an id that is none of the tokenizer's"},
      {R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}],
           "special_tokens": {"x": {"ids": ["y"]}}})",
       "gives x an id that is none of the tokenizer's"},
      {R"({"type": "Surprising"})", "a post_processor of type Surprising is not supported"},
      {R"({"type": "Sequence", "processors": [{"type": "RobertaProcessing"}]})", "type RobertaProcessing is not"}};
  for (const auto& [processor, part] : cases) {
    SCOPED_TRACE(processor);
    file["post_processor"] = nlohmann::json::parse(processor);
    WriteText(folder / "tokenizer.json", file.dump());
    EXPECT_ERROR(PrefixIds(folder / "", *tokenizer).status(), ExitCode::kData, part);
  }
  // What is said in vain says nothing.
  file["post_processor"] = nlohmann::json::parse(
      R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>"}}], "special_tokens": []})");
  WriteText(folder / "tokenizer.json", file.dump());
  EXPECT_EQ(PrefixIds(folder / "", *tokenizer).value(), std::vector<int64_t>{kEndOfDocument});
}

}  // namespace
}  // namespace trireme
