// Renders Jinja for tests/oracle/chat_oracle.py. Standard input: a JSON object per line, {"source": the template, "name":
// ..., "variables": {...}}. Standard output, a line each: {"text": ...} or {"error": ...}.
#include <iostream>

#include "data/jinja/template.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

Json Answer(const Json& request) {
  const auto parsed = jinja::Template::Parse(request.at("source").get_ref<const std::string&>(), request.at("name"));
  if (!parsed.ok()) return {{"error", std::string(parsed.status().message())}};
  jinja::Environment environment;
  environment.now = 1785600000;
  const auto rendered = parsed->Render(request.at("variables"), environment);
  if (!rendered.ok()) return {{"error", std::string(rendered.status().message())}};
  return {{"text", rendered->text}};
}

}  // namespace
}  // namespace trireme

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << trireme::Answer(trireme::Json::parse(line)).dump() << "\n";
  }
  return 0;
}
