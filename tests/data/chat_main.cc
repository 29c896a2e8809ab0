// Renders for tests/oracle/chat_oracle.py. Standard input: a JSON object per line. Standard output, a line each: the
// answer, or {"error": ...}.
//   {"source": the template, "variables": {...}}                                  {"text": ...}
//   {"source": ..., "messages": [...], "tools": ..., "tokens": {...}, "prompt": bool, "extra": {...}}   {"text": ...},
//   of the model's own the same with "spans": true                              {"text": ..., "spans": [[begin, end],
//   ...], "marked": bool}
#include <iostream>

#include "data/chat/chat_template.h"
#include "data/jinja/template.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kNow = 1785600000;

Json Failed(const absl::Status& status) { return {{"error", std::string(status.message())}}; }

Json AnswerTemplate(const std::string& source, const Json& variables) {
  const auto parsed = jinja::Template::Parse(source, "template");
  if (!parsed.ok()) return Failed(parsed.status());
  jinja::Environment environment;
  environment.now = kNow;
  const auto rendered = parsed->Render(variables, environment);
  if (!rendered.ok()) return Failed(rendered.status());
  return {{"text", rendered->text}};
}

Json Answer(const Json& request) {
  const std::string source = request.at("source");
  if (request.contains("variables")) return AnswerTemplate(source, request["variables"]);
  ChatTemplateOptions options;
  options.special_tokens = request.at("tokens").get<std::map<std::string, std::string>>();
  options.now = kNow;
  const auto chat = ChatTemplate::Parse(source, "template", options);
  if (!chat.ok()) return Failed(chat.status());
  const Conversation conversation = {request.at("messages"), request.at("tools"), request.at("extra")};
  if (!request.value("spans", false)) {
    const auto text = chat->Render(conversation, request.at("prompt"));
    if (!text.ok()) return Failed(text.status());
    return {{"text", *text}};
  }
  const auto rendered = chat->RenderForTraining(conversation);
  if (!rendered.ok()) return Failed(rendered.status());
  Json spans = Json::array();
  for (const ByteRange& span : rendered->assistant) spans.push_back({span.begin, span.end});
  return {{"text", rendered->text}, {"spans", spans}, {"marked", rendered->ends_marked}};
}

}  // namespace
}  // namespace trireme

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << trireme::Answer(trireme::Json::parse(line)).dump() << "\n";
  }
  return 0;
}
