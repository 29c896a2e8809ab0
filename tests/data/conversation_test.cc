#include "data/chat/conversation.h"

#include <gtest/gtest.h>

#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

ConversationSample Parse(const std::string& line) {
  absl::StatusOr<ConversationSample> sample = ParseConversation(line, "f.jsonl:7");
  EXPECT_TRUE(sample.ok()) << sample.status();
  return sample.ok() ? *std::move(sample) : ConversationSample();
}

// "role: content" of each message.
std::vector<std::string> Messages(const ConversationSample& sample) {
  std::vector<std::string> messages;
  for (const auto& message : sample.conversation.messages)
    messages.push_back(message.at("role").get<std::string>() + ": " + message.value("content", std::string("-")));
  return messages;
}

void ExpectRefused(const std::string& line, const std::string& what) {
  SCOPED_TRACE(line.substr(0, 200));
  EXPECT_ERROR(ParseConversation(line, "f.jsonl:7").status(), ExitCode::kData, what);
  EXPECT_ERROR(ParseConversation(line, "f.jsonl:7").status(), ExitCode::kData, "read f.jsonl:7: ");
}

TEST(Conversation, MessagesKeepWhatTemplatesRead) {
  const ConversationSample sample = Parse(
      R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},)"
      R"( {"role": "assistant", "content": null, "tool_calls": [{"z": 1, "a": 2}]}, {"role": "tool", "content": "3", "tool_call_id": "x"},)"
      R"( {"role": "assistant", "content": "é"}], "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"think": true}})");
  EXPECT_EQ(sample.form, SampleForm::kMessages);
  EXPECT_TRUE(sample.is_chat());
  EXPECT_EQ(
      Messages(Parse(R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]})")),
      (std::vector<std::string>{"user: x", "assistant: "}));
  ASSERT_EQ(sample.conversation.messages.size(), 5u);
  EXPECT_EQ(sample.conversation.messages[1]["content"], "ab");
  EXPECT_EQ(sample.conversation.messages[2]["tool_calls"].dump(), R"([{"z":1,"a":2}])");
  EXPECT_EQ(sample.conversation.messages[3]["tool_call_id"], "x");
  EXPECT_EQ(sample.conversation.tools.dump(), R"([{"name":"f"}])");
  EXPECT_EQ(sample.conversation.variables.dump(), R"({"think":true})");
  EXPECT_EQ(sample.learned, (std::vector<bool>{true, true}));
}

TEST(Conversation, ShareGptAndAlpacaBecomeMessages) {
  EXPECT_EQ(
      Messages(Parse(
          R"({"id": "1", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})")),
      (std::vector<std::string>{"system: s", "user: q", "assistant: a"}));
  EXPECT_EQ(Messages(Parse(R"({"conversations": [{"role": "user", "content": "q"}]})")),
            std::vector<std::string>{"user: q"});
  EXPECT_EQ(Messages(Parse(R"({"instruction": "Add.", "input": "1 2", "output": "3", "text": "whole"})")),
            (std::vector<std::string>{"user: Add.\n\n1 2", "assistant: 3"}));
  EXPECT_EQ(Messages(Parse(R"({"instruction": "Sing.", "input": "", "output": "la", "system": "You sing."})")),
            (std::vector<std::string>{"system: You sing.", "user: Sing.", "assistant: la"}));
}

TEST(Conversation, ASystemPromptMayStandBesideTheMessages) {
  const std::vector<std::string> expected = {"system: s", "user: q", "assistant: a"};
  EXPECT_EQ(
      Messages(Parse(
          R"({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})")),
      expected);
  const std::string turns = R"({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})";
  EXPECT_EQ(Messages(Parse(R"({"system": "s", "messages": [)" + turns)), expected);
  EXPECT_EQ(Messages(Parse(R"({"system": "s", "messages": [{"role": "system", "content": "s"}, )" + turns)), expected);
  EXPECT_EQ(Messages(Parse(R"({"system": "", "messages": [)" + turns)).size(), 2u);
  ExpectRefused(R"({"system": "other", "messages": [{"role": "system", "content": "s"}, )" + turns,
                "says something else than the first message");
}

// Tables have a column for every key that any line has; Transformers drops a message's keys without a value.
TEST(Conversation, KeysWithoutAValueAreAbsent) {
  const ConversationSample sample =
      Parse(R"({"messages": [{"role": "user", "content": "q", "name": null, "tool_calls": null},)"
            R"( {"role": "assistant", "content": null, "tool_calls": [{"id": null}], "weight": null}],)"
            R"( "prompt": null, "completion": null, "text": null, "tools": null, "system": null})");
  EXPECT_EQ(sample.form, SampleForm::kMessages);
  EXPECT_EQ(sample.conversation.messages.dump(),
            R"([{"role":"user","content":"q"},{"role":"assistant","tool_calls":[{"id":null}]}])");
  EXPECT_EQ(sample.learned, std::vector<bool>{true});
  EXPECT_EQ(Parse(R"({"messages": null, "prompt": "p", "completion": "c"})").form, SampleForm::kPromptText);
  EXPECT_EQ(Parse(R"({"conversations": null, "instruction": "i", "output": "o", "text": null})").form,
            SampleForm::kAlpaca);
  EXPECT_TRUE(Parse(R"({"text": null})").empty());
  EXPECT_EQ(
      Parse(R"({"conversations": [{"from": "human", "value": "q", "weight": null}]})").conversation.messages.dump(),
      R"([{"role":"user","content":"q"}])");
}

TEST(Conversation, WhatTheTemplateIsGivenIsWhatTransformersTakes) {
  const std::string talk = R"({"messages": [{"role": "user", "content": "q"}], )";
  EXPECT_EQ(Parse(talk + R"("tools": []})").conversation.tools.dump(), "[]");
  for (const char* none : {R"("tools": ""})", R"("tools": "null"})", R"("tools": null})"})
    EXPECT_TRUE(Parse(talk + none).conversation.tools.is_null()) << none;
  EXPECT_EQ(Parse(talk + R"("chat_template_kwargs": {"documents": [{"title": "t"}]}})").conversation.variables.size(),
            1u);
  ExpectRefused(talk + R"("tools": ["{}"]})", "field \"tools\" is not a list of objects");
  ExpectRefused(talk + R"("chat_template_kwargs": {"documents": ["t"]}})", "documents is not a list of objects");
  ExpectRefused(talk + R"("chat_template_kwargs": {"tools": []}})", "write the field \"tools\"");
  ExpectRefused(talk + R"("chat_template_kwargs": {"add_generation_prompt": true}})", "is no variable of a template");
}

TEST(Conversation, CopiesAreKnownByWhatIsSaid) {
  const auto hash = [](const std::string& line) { return Parse(line).content_hash; };
  const std::string one =
      hash(R"({"messages": [{"role": "user", "content": "q\u00e9"}, {"role": "assistant", "content": "a",)"
           R"( "tool_calls": [{"id": "x1", "function": {"name": "f", "arguments": {"p": 1, "q": [2]}}}]}]})");
  for (
      const char* copy :
      {R"({"id": 7,  "messages": [{"content": "qé", "role": "user", "id": "m1"}, {"tool_calls": [{"function": {"arguments": {"q": [2], "p": 1}, "name": "f"}, "id": "x2"}], "role": "assistant", "content": "a", "weight": 1}]}  )"
       "\r",
       R"({"messages": [{"role": "user", "content": "qé", "name": null}, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": [{"function": {"name": "f", "arguments": "{\"p\": 1, \"q\":[2]}"}}]}], "source": "web"})",
       R"({"prompt": [{"role": "user", "content": "qé"}], "completion": [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"p": 1, "q": [2]}}}]}]})"})
    EXPECT_EQ(hash(copy), one) << copy;
  EXPECT_EQ(hash(R"({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})"),
            hash(R"({"instruction": "q", "input": "", "output": "a"})"));
  EXPECT_EQ(hash(R"({"text": "pc"})"), hash(R"({"n": 1, "completion": "c", "prompt": "p"})"));
  EXPECT_NE(hash(R"({"messages": [{"role": "user", "content": "q"}]})"),
            hash(R"({"messages": [{"role": "user", "content": "r"}]})"));
}

TEST(Conversation, PromptsAndTexts) {
  const ConversationSample text = Parse(R"({"prompt": "1+1=", "completion": "2"})");
  EXPECT_EQ(text.form, SampleForm::kPromptText);
  EXPECT_EQ(text.prompt + "|" + text.completion, "1+1=|2");
  const ConversationSample chat =
      Parse(R"({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]})");
  EXPECT_EQ(Messages(chat), (std::vector<std::string>{"user: q", "assistant: a"}));
  EXPECT_EQ(chat.prompt_messages, 1u);
  EXPECT_EQ(Parse(R"({"text": "t"})").completion, "t");
  EXPECT_EQ(Parse(R"({"messages": [{"role": "assistant", "content": "a", "weight": 0}]})").learned,
            std::vector<bool>{false});
  for (const char* empty : {R"({"messages": []})", R"({"text": ""})", R"({"prompt": "p", "completion": ""})",
                            R"({"instruction": "", "output": ""})", R"({"conversations": []})"})
    EXPECT_TRUE(Parse(empty).empty()) << empty;
}

TEST(Conversation, RefusesWhatItCannotMean) {
  ExpectRefused("{\"text\": \"a\"", "not valid JSON");
  ExpectRefused(std::string("{\"text\": \"a\"}\0x", 15), "zero byte");
  ExpectRefused("[1]", "a JSON array");
  ExpectRefused("{\"text\": \"\xff\"}", "not valid JSON");
  ExpectRefused("{\"text\": " + std::string(100000, '[') + std::string(100000, ']') + "}", "deep");
  ExpectRefused(R"({"question": "q", "answer": "a"})",
                "no form that is known (there are the fields: question, answer)");
  ExpectRefused(R"({"text": 3})", "field \"text\" is a number");
  ExpectRefused(R"({"messages": "hi"})", "not a list of messages");
  ExpectRefused(R"({"messages": ["hi"]})", "messages[0] is a string");
  ExpectRefused(R"({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]})", "messages[1] has no role");
  ExpectRefused(R"({"messages": [{"role": "user"}]})", "messages[0] has no content");
  ExpectRefused(R"({"messages": [{"role": "bot", "content": "a"}]})", "unknown role \"bot\"");
  ExpectRefused(R"({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]})",
                "part of type \"image\"");
  ExpectRefused(R"({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]})", "weight is 0.5");
  ExpectRefused(R"({"conversations": [{"from": "narrator", "value": "a"}]})", "unknown \"narrator\"");
  ExpectRefused(R"({"conversations": [{"from": "human"}]})", "has no \"value\"");
  ExpectRefused(R"({"conversations": [{"value": "x"}]})", "has no \"from\"");
  ExpectRefused(R"({"prompt": "a", "completion": []})", "both must be strings or both lists");
  ExpectRefused(R"({"instruction": "a", "output": "b", "history": [["c", "d"]]})", "history");
  ExpectRefused(R"({"messages": [], "tools": "[oops"})", "not valid JSON");
}

TEST(ConversationReader, NamesFileAndLine) {
  const TempFolder folder;
  WriteText(folder / "a.jsonl", "{\"text\": \"1\"}\r\n\n{\"text\": \"2\"}");
  WriteText(folder / "b.jsonl", "{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"text\": \n");
  ConversationReader reader = ConversationReader::Open({folder / "a.jsonl", folder / "b.jsonl"}).value();
  ConversationSample sample;
  std::vector<std::string> places;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(reader.Next(&sample).value());
    places.push_back(sample.place.substr(sample.place.rfind('/') + 1));
  }
  EXPECT_EQ(places, (std::vector<std::string>{"a.jsonl:1", "a.jsonl:3", "b.jsonl:1"}));  // Forms may differ by file.
  EXPECT_ERROR(reader.Next(&sample).status(), ExitCode::kData, "b.jsonl:2: not valid JSON");
  EXPECT_ERROR(ConversationReader::Open({folder / "c.jsonl", folder / "d.jsonl"}).status(), ExitCode::kData,
               "d.jsonl: no such file");
  EXPECT_ERROR(ConversationReader::Open({folder / ""}).status(), ExitCode::kData, "it is a folder");
}

TEST(ConversationReader, RefusesTwoFormsInOneFileNamingBothLines) {
  const TempFolder folder;
  WriteText(folder / "a.jsonl", "\n{\"text\": \"1\"}\n{\"text\": \"1\"}\n{\"prompt\": \"p\", \"completion\": \"c\"}\n");
  ConversationReader reader = ConversationReader::Open({folder / "a.jsonl"}).value();
  ConversationSample sample;
  ASSERT_TRUE(reader.Next(&sample).value());
  ASSERT_TRUE(reader.Next(&sample).value());
  EXPECT_ERROR(reader.Next(&sample).status(), ExitCode::kData, "line 2 holds text but line 4 prompt and completion");
}

}  // namespace
}  // namespace trireme
