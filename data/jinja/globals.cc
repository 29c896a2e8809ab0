// The functions that every template can call.
#include <algorithm>
#include <ctime>

#include "data/jinja/evaluator.h"

namespace trireme::jinja {
namespace {

constexpr absl::string_view kGlobals[] = {"range",        "dict",   "namespace", "raise_exception",
                                          "strftime_now", "cycler", "joiner",    "lipsum"};
constexpr int64_t kMaxRange = 100000;  // of the sandbox

Result Range(Evaluator* evaluator, const CallArguments& arguments) {
  if (!arguments.named.empty()) return evaluator->Raise("range() takes no keyword arguments");
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) return evaluator->Raise("range expected 1 to 3 arguments, got ", given.size());
  for (const Value& value : given) {
    if (!value.is_integer())
      return evaluator->Raise("'", TypeName(value), "' object cannot be interpreted as an integer");
    if (value.integer() > INT64_MAX / 4 || value.integer() < -INT64_MAX / 4) return evaluator->Refuse("such a range");
  }
  auto range = std::make_shared<RangeObject>();
  range->start = given.size() > 1 ? given[0].integer() : 0;
  const int64_t stop = given[given.size() > 1 ? 1 : 0].integer();
  range->step = given.size() > 2 ? given[2].integer() : 1;
  if (range->step == 0) return evaluator->Raise("range() arg 3 must not be zero");
  const int64_t span = range->step > 0 ? stop - range->start : range->start - stop;
  const int64_t step = std::abs(range->step);
  range->length = span <= 0 ? 0 : (span - 1) / step + 1;
  if (range->length > kMaxRange)
    return evaluator->Raise("Range too big. The sandbox blocks ranges larger than MAX_RANGE (", kMaxRange, ").");
  return Value(Kind::kRange, std::move(range));
}

// dict(mapping or pairs, name=value, ...).
absl::StatusOr<std::shared_ptr<DictObject>> MakeDict(Evaluator* evaluator, const CallArguments& arguments) {
  auto dict = std::make_shared<DictObject>();
  if (arguments.positional.size() > 1)
    return evaluator->Raise("dict expected at most 1 argument, got ", arguments.positional.size());
  if (!arguments.positional.empty()) {
    const Value& first = arguments.positional[0];
    if (first.is(Kind::kDict)) {
      for (const auto& [key, value] : first.dict().entries) dict->Set(key, value);
    } else {
      ASSIGN_OR_RETURN(const std::vector<Value> pairs, evaluator->ToVector(first));
      for (const Value& pair : pairs) {
        if (!pair.is_sequence() || pair.items().size() != 2 || !pair.items()[0].is_string())
          return evaluator->Refuse("dict() of other than a mapping or pairs of a text and a value");
        dict->Set(pair.items()[0].text(), pair.items()[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict->Set(name, value);
  return dict;
}

Result MakeNamespace(Evaluator* evaluator, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::shared_ptr<DictObject> attributes, MakeDict(evaluator, arguments));
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(attributes->entries.size() + 4) * 64));
  NamespaceObject* object = evaluator->NewNamespace();
  for (const auto& [name, value] : attributes->entries) {
    if (!name.is_string()) return evaluator->Refuse("a namespace with attributes that are no texts");
    if (name.text()[0] == '_')
      return evaluator->Raise("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '",
                              name.text(), "'. Please rename the attribute.");
    object->attributes.emplace_back(name.text(), value);
  }
  return Value(Kind::kNamespace, std::shared_ptr<Object>(std::shared_ptr<Object>(), object));
}

Result StrftimeNow(Evaluator* evaluator, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "strftime_now", arguments, {"format"}, 1));
  if (!values[0].is_string()) return evaluator->Raise("strftime() argument 1 must be str, not ", TypeName(values[0]));
  const std::optional<int64_t> fixed = evaluator->environment().now;
  const std::time_t now = fixed.has_value() ? static_cast<std::time_t>(*fixed) : std::time(nullptr);
  std::tm calendar{};
  if (fixed.has_value() ? gmtime_r(&now, &calendar) == nullptr : localtime_r(&now, &calendar) == nullptr)
    return evaluator->Raise("the time ", now, " is no date");
  // What the C library and Python agree on.
  static constexpr absl::string_view kDirectives = "aAbBcdDeFHIjmMnpSTuUwWxXyY%";
  const std::string& format = values[0].text();
  std::string out;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out.push_back(format[at]);
      continue;
    }
    std::string directive = "%";
    if (++at < format.size() && format[at] == '-') directive += format[at++];
    const char letter = at < format.size() ? format[at] : '\0';
    if (letter == 'z' || letter == 'Z') continue;  // a naive time has no zone
    if (letter == '\0' || kDirectives.find(letter) == absl::string_view::npos)
      return evaluator->Refuse("strftime_now with %", std::string(1, letter));
    directive += letter;
    char buffer[128];
    out.append(buffer, std::strftime(buffer, sizeof(buffer), directive.c_str(), &calendar));
  }
  return evaluator->NewString(std::move(out));
}

}  // namespace

Value Global(const std::string& name) {
  if (std::find(std::begin(kGlobals), std::end(kGlobals), name) == std::end(kGlobals)) return Value();
  auto function = std::make_shared<FunctionObject>();
  function->type = FunctionObject::Type::kGlobal;
  function->name = name;
  return Value(Kind::kFunction, std::move(function));
}

Result CallGlobal(Evaluator* evaluator, const std::string& name, const CallArguments& arguments) {
  if (name == "range") return Range(evaluator, arguments);
  if (name == "namespace") return MakeNamespace(evaluator, arguments);
  if (name == "strftime_now") return StrftimeNow(evaluator, arguments);
  if (name == "dict") {
    ASSIGN_OR_RETURN(std::shared_ptr<DictObject> dict, MakeDict(evaluator, arguments));
    return evaluator->NewDict(std::move(dict));
  }
  if (name == "raise_exception") {
    ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, name, arguments, {"message"}, 1));
    const absl::StatusOr<std::string> message = ToText(evaluator, values[0]);
    return evaluator->Raise("the template raises: ", message.ok() ? *message : TypeName(values[0]));
  }
  return evaluator->Refuse("the function ", name);
}

}  // namespace trireme::jinja
