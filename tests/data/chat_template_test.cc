#include "data/chat/chat_template.h"

#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kChatMl[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
// Drops the reasoning of turns before the last question, and asks for reasoning.
constexpr char kReasons[] =
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.index0 > ns.last "
    "%}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}";

ChatTemplate Parsed(const std::string& text) {
  ChatTemplateOptions options;
  options.special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  return ChatTemplate::Parse(text, "T", options).value();
}

Conversation Talk(const std::string& messages) {
  Conversation conversation;
  conversation.messages = Json::parse(messages);
  return conversation;
}

const char kTwoTurns[] = R"([{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d\n"}])";

// What the assistant says, word for word; or the error.
std::vector<std::string> Learned(const std::string& text, const std::string& messages, bool* marked = nullptr) {
  const absl::StatusOr<RenderedChat> chat = Parsed(text).RenderForTraining(Talk(messages));
  if (!chat.ok()) return {std::string(chat.status().message())};
  if (marked != nullptr) *marked = chat->ends_marked;
  std::vector<std::string> learned;
  for (const ByteRange& span : chat->assistant) learned.push_back(chat->text.substr(span.begin, span.end - span.begin));
  return learned;
}

using Texts = std::vector<std::string>;

TEST(ChatTemplate, RendersWithSpecialTokensAndVariables) {
  const ChatTemplate chat = Parsed(
      "{{ bos_token }}{{ messages[0].content }}{{ tools is none }}{{ documents }}{{ mode }}{{ add_generation_prompt "
      "}}");
  Conversation conversation = Talk(R"([{"role": "user", "content": "x"}])");
  conversation.variables["mode"] = "m";
  EXPECT_EQ(chat.Render(conversation, true).value(), "<s>xTrueNonemTrue");
}

// Transformers drops a message's keys whose value is None before it renders, those within values not.
TEST(ChatTemplate, KeysWithoutAValueAreAbsent) {
  const ChatTemplate chat = Parsed("{{ messages[0].name is defined }}{{ messages[0] }}");
  EXPECT_EQ(
      chat.Render(Talk(R"([{"role": "user", "name": null, "reasoning": null, "tool_calls": [{"id": null}]}])"), false)
          .value(),
      "False{'role': 'user', 'tool_calls': [{'id': None}]}");
  EXPECT_EQ(Learned(kChatMl, R"([{"role": "user", "content": "a", "name": null}, {"role": "assistant", "content": "b",
      "tool_calls": null}])"),
            Texts{"b<|im_end|>"});
}

TEST(ChatTemplate, ReasoningHasAllItsNames) {
  const ChatTemplate chat = Parsed("{{ messages[0] }}");
  EXPECT_EQ(chat.Render(Talk(R"([{"role": "assistant", "reasoning": "r"}])"), false).value(),
            "{'thinking': 'r', 'role': 'assistant', 'reasoning': 'r', 'reasoning_content': 'r'}");
}

TEST(AssistantSpans, ContentAndTheMarkThatEndsIt) {
  bool marked = false;
  EXPECT_EQ(Learned(kChatMl, kTwoTurns, &marked), (Texts{"b<|im_end|>", "d\n<|im_end|>"}));
  EXPECT_TRUE(marked);
  EXPECT_EQ(Learned(kChatMl, R"([{"role": "user", "content": "a"}])"), Texts{});
}

TEST(AssistantSpans, GenerationBlocksSayItThemselves) {
  EXPECT_EQ(Learned("{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                    "{{ eos_token }}\n{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
                    kTwoTurns),
            (Texts{"b</s>", "d\n</s>"}));
  const Texts captured =
      Learned("{% set x %}{% generation %}{{ messages[1].content }}{% endgeneration %}{% endset %}{{ x }}", kTwoTurns);
  EXPECT_TRUE(absl::StrContains(captured[0], "within a macro")) << captured[0];
}

TEST(AssistantSpans, WhereEarlierMessagesAreWrittenOtherwise) {
  EXPECT_EQ(Learned(kReasons, R"([{"role": "user", "content": "a"},
      {"role": "assistant", "content": "b", "reasoning_content": "r"}, {"role": "user", "content": "c"},
      {"role": "assistant", "content": "d", "reasoning_content": "q"}])"),
            (Texts{"b<end>", "q</think>d<end>"}));
}

TEST(AssistantSpans, WhereTheTextEndsOtherwiseThanATurn) {
  EXPECT_EQ(Learned("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
                    kTwoTurns),
            (Texts{"b<|end|>", "d\n<|end|></s>"}));
}

TEST(AssistantSpans, SaysWhenNothingMarksTheEnd) {
  bool marked = true;
  EXPECT_EQ(Learned("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                    "{% if add_generation_prompt %}<assistant>{% endif %}",
                    kTwoTurns, &marked),
            (Texts{"b", "d\n"}));
  EXPECT_FALSE(marked);
}

TEST(AssistantSpans, AreRefusedRatherThanGuessed) {
  const Texts always =
      Learned("{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>", kTwoTurns);
  ASSERT_EQ(always.size(), 1u);
  EXPECT_TRUE(absl::StrContains(always[0], "cannot tell where the assistant speaks in message")) << always[0];
  // The words stand before all turns.
  const Texts moved = Learned(
      "{% for m in messages %}{{ m.content if m.role == 'assistant' }}{% endfor %}{% for m in messages %}<{{ m.role }}>"
      "{{ m.content if m.role != 'assistant' }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
      kTwoTurns);
  ASSERT_EQ(moved.size(), 1u);
  EXPECT_TRUE(absl::StrContains(moved[0], "message 3")) << moved[0];
}

TEST(AssistantSpans, TemplateThatRaisesIsAnError) {
  const absl::Status status = Parsed("{{ raise_exception('roles') }}").RenderForTraining(Talk(kTwoTurns)).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
  EXPECT_EQ(status.message(), "T:1: the template raises: roles");
  Conversation broken;
  broken.messages = Json::parse(R"(["a"])");
  EXPECT_EQ(Parsed(kChatMl).Render(broken, false).status().message(), "T: a message is not an object");
}

TEST(ReadSpecialTokens, OlderModelsHaveThemInAFileOfTheirOwn) {
  const TempFolder folder;
  EXPECT_TRUE(ReadSpecialTokens(folder / "")->empty());
  WriteText(folder / "special_tokens_map.json", R"({"bos_token": "old", "eos_token": {"content": "</s>"}, "x": "y"})");
  WriteText(folder / "tokenizer_config.json", R"({"bos_token": "new", "eos_token": null})");
  EXPECT_EQ(ReadSpecialTokens(folder / "").value(), (SpecialTokens{{"bos_token", "new"}, {"eos_token", "</s>"}}));
  WriteText(folder / "special_tokens_map.json", R"({"eos_token": 7})");
  EXPECT_ERROR(ReadSpecialTokens(folder / "").status(), ExitCode::kData, "eos_token is 7, which is neither a text");
  WriteText(folder / "special_tokens_map.json", "[]");
  EXPECT_EQ(ExitCodeOf(ReadSpecialTokens(folder / "").status()), ExitCode::kData);
}

TEST(LoadChatTemplate, FindsItAsTransformersDoes) {
  const TempFolder folder;
  const Conversation conversation = Talk(R"([{"role": "user", "content": "x"}])");
  absl::Status status = LoadChatTemplate(folder / "").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
  WriteText(folder / "tokenizer_config.json", R"({"chat_template": "old{{ eos_token }}{{ bos_token }}",
      "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null})");
  EXPECT_EQ(LoadChatTemplate(folder / "")->Render(conversation, false).value(), "old</s><s>");
  EXPECT_EQ(LoadChatTemplate(folder / "", {{{"bos_token", "B"}}, {}})->Render(conversation, false).value(), "old</s>B");
  WriteText(folder / "tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "t"},
      {"name": "default", "template": "d"}]})");
  EXPECT_EQ(LoadChatTemplate(folder / "")->Render(conversation, false).value(), "d");
  Conversation with_tools = conversation;
  with_tools.tools = Json::array();
  EXPECT_EQ(LoadChatTemplate(folder / "")->Render(with_tools, false).value(), "t");
  WriteText(folder / "chat_template.jinja", "new");
  EXPECT_EQ(LoadChatTemplate(folder / "")->Render(conversation, false).value(), "new");
  WriteText(folder / "chat_template.jinja", "\n{% foo %}");
  status = LoadChatTemplate(folder / "").status();
  EXPECT_TRUE(absl::StrContains(status.message(), "chat_template.jinja:2: Encountered unknown tag")) << status;
  WriteText(folder / "tokenizer_config.json", "[");
  EXPECT_TRUE(absl::StrContains(LoadChatTemplate(folder / "").status().message(), "is not a JSON object"));
}

}  // namespace
}  // namespace trireme
