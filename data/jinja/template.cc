#include "data/jinja/template.h"

#include "data/jinja/evaluator.h"
#include "data/jinja/scopes.h"
#include "data/jinja/syntax/parser.h"
#include "data/unicode/unicode.h"
#include "launch/base/json.h"

namespace trireme::jinja {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 100;

Result FromJson(const Json& json, int depth_left) {
  if (depth_left == 0) return Error(ExitCode::kData, "a conversation is nested more than ", kMaxJsonDepth, " deep");
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::Bool(JsonBool(json).value_or(false));
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned: {
      const std::optional<int64_t> number = JsonInteger(json);
      if (!number.has_value())
        return Error(ExitCode::kData, "the number ", DumpJson(json), " beyond 64 bits is not supported");
      return Value::Int(*number);
    }
    case Json::value_t::number_float:
      return Value::Float(JsonNumber(json).value_or(0));
    case Json::value_t::string: {
      const std::string text = JsonTextOr(json, "");
      if (!IsValidUtf8(text)) return Error(ExitCode::kData, "a text of the conversation is not UTF-8");
      return Value::String(text);
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ASSIGN_OR_RETURN(Value value, FromJson(item, depth_left - 1));
        items.push_back(std::move(value));
      }
      return Value::List(std::move(items));
    }
    case Json::value_t::object: {
      auto dict = std::make_shared<DictObject>();
      dict->depth = 1;
      for (const auto& [key, item] : json.items()) {
        if (!IsValidUtf8(key)) return Error(ExitCode::kData, "a key of the conversation is not UTF-8");
        ASSIGN_OR_RETURN(Value value, FromJson(item, depth_left - 1));
        dict->Set(key, std::move(value));
      }
      return Value::Dict(std::move(dict));
    }
    default:
      return Value::None();
  }
}

}  // namespace

Template::Template(std::unique_ptr<Program> program) : program_(std::move(program)) {}
Template::Template(Template&&) = default;
Template& Template::operator=(Template&&) = default;
Template::~Template() = default;

bool Template::has_generation() const { return program_->has_generation; }

absl::StatusOr<Template> Template::Parse(absl::string_view source, const std::string& name, Limits limits) {
  if (source.size() > limits.template_bytes) {
    return Error(ExitCode::kData, name, ": the template has ", source.size(), " bytes, more than the ",
                 limits.template_bytes, " allowed");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Program> program, ParseTemplate(source, name, limits.nesting));
  RETURN_IF_ERROR(ResolveNames(program.get()));
  return Template(std::move(program));
}

absl::StatusOr<Rendering> Template::Render(const nlohmann::ordered_json& variables,
                                           const Environment& environment) const {
  TRIREME_CHECK(variables.is_object());
  ASSIGN_OR_RETURN(const Value values, FromJson(variables, kMaxJsonDepth));
  return Evaluator(*program_, environment, values).Run();
}

}  // namespace trireme::jinja
