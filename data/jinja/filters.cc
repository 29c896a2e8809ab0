// Jinja's filters on single values, and the table of all.
#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"

namespace trireme::jinja {
namespace {

// markupsafe.soft_str: a text stays what it is.
Result SoftText(Evaluator* evaluator, const Value& value) {
  if (value.is_string()) return value;
  ASSIGN_OR_RETURN(std::string text, ToText(evaluator, value));
  return evaluator->NewString(std::move(text));
}

template <typename Convert>
Result CaseFilter(Evaluator* evaluator, absl::string_view name, const Value& input, const CallArguments& arguments,
                  const Convert& convert) {
  RETURN_IF_ERROR(Bind(evaluator, name, arguments, {}, 0).status());
  ASSIGN_OR_RETURN(const Value text, SoftText(evaluator, input));
  RETURN_IF_ERROR(CheckCase(evaluator, name, text.text()));
  return evaluator->NewString(convert(text.text()), text.markup());
}

Result Lower(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return CaseFilter(evaluator, "lower", input, arguments, AsciiLower);
}
Result Upper(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return CaseFilter(evaluator, "upper", input, arguments, AsciiUpper);
}
Result Capitalize(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return CaseFilter(evaluator, "capitalize", input, arguments, AsciiCapitalize);
}

// Not str.title: words begin after white space and one of -({[<.
Result Title(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  if (input.markup()) return evaluator->Refuse("title of a text marked safe");
  return CaseFilter(evaluator, "title", input, arguments, [](const std::string& text) {
    std::string out = AsciiLower(text);
    bool begins = true;
    for (size_t at = 0; at < out.size();) {
      const size_t next = at + ByteOffset(absl::string_view(out).substr(at), 1);
      const absl::string_view character = absl::string_view(out).substr(at, next - at);
      const bool separates =
          absl::string_view("-({[<").find(character) != absl::string_view::npos || StripLeft(character).empty();
      if (begins && !separates) out[at] = absl::ascii_toupper(out[at]);
      begins = separates;
      at = next;
    }
    return out;
  });
}

Result Trim(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "trim", arguments, {"chars"}, 0));
  ASSIGN_OR_RETURN(const Value text, SoftText(evaluator, input));
  std::optional<std::string> characters;
  if (values[0].is_string()) {
    characters = values[0].text();
  } else if (!values[0].is(Kind::kMissing) && !values[0].is(Kind::kNone)) {
    return evaluator->Raise("strip arg must be None or str");
  }
  return evaluator->NewString(std::string(StripRight(StripLeft(text.text(), characters), characters)), text.markup());
}

Result String(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "string", arguments, {}, 0).status());
  return SoftText(evaluator, input);
}

Result Safe(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "safe", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(std::string text, ToText(evaluator, input));
  return evaluator->NewString(std::move(text), /*markup=*/true);
}

Result Escape(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "escape", arguments, {}, 0).status());
  if (input.markup()) return input;
  ASSIGN_OR_RETURN(const std::string text, ToText(evaluator, input));
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size()) * 5));
  return evaluator->NewString(EscapeHtml(text), /*markup=*/true);
}

Result ReplaceFilter(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "replace", arguments, {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const std::string text, ToText(evaluator, input));
  ASSIGN_OR_RETURN(const std::string from, ToText(evaluator, values[0]));
  ASSIGN_OR_RETURN(const std::string to, ToText(evaluator, values[1]));
  int64_t count = -1;
  if (values[2].is_integer()) {
    count = values[2].integer();
  } else if (!values[2].is(Kind::kMissing) && !values[2].is(Kind::kNone)) {
    return evaluator->Raise("'", TypeName(values[2]), "' object cannot be interpreted as an integer");
  }
  return ReplaceText(evaluator, text, from, to, count);
}

Result Indent(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "indent", arguments, {"width", "first", "blank"}, 0));
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (!input.is_string()) return evaluator->Raise("indent: unsupported operand: '", TypeName(input), "'");
  if (input.markup()) return evaluator->Refuse("indent of a text marked safe");
  std::string indention(4, ' ');
  if (values[0].is_string()) {
    indention = values[0].text();
  } else if (values[0].is_integer()) {
    RETURN_IF_ERROR(evaluator->Charge(std::max<int64_t>(values[0].integer(), 0)));
    indention.assign(std::max<int64_t>(values[0].integer(), 0), ' ');
  } else if (!values[0].is(Kind::kMissing)) {
    return evaluator->Raise("can't multiply sequence by non-int of type '", TypeName(values[0]), "'");
  }
  const bool first = IsTrue(values[1]), blank = IsTrue(values[2]);
  const std::string text = input.text() + "\n";
  const std::vector<absl::string_view> lines = SplitLines(text, /*keep_ends=*/false);
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size() + lines.size() * indention.size())));
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if (i == 0 ? first : blank || !lines[i].empty()) out += indention;
    out.append(lines[i].data(), lines[i].size());
  }
  return evaluator->NewString(std::move(out));
}

Result Center(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(std::vector<Value> values, Bind(evaluator, "center", arguments, {"width"}, 0));
  ASSIGN_OR_RETURN(const Value text, SoftText(evaluator, input));
  if (text.markup()) return evaluator->Refuse("center of a text marked safe");
  CallArguments width;
  width.positional.push_back(values[0].is(Kind::kMissing) ? Value::Int(80) : values[0]);
  return CallStringMethod(evaluator, text, "center", width);
}

Result Truncate(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "truncate", arguments, {"length", "killwords", "end", "leeway"}, 0));
  if (!input.is_string() || input.markup()) return evaluator->Refuse("truncate of a ", TypeName(input));
  const auto integer = [&](const Value& value, int64_t otherwise) -> absl::StatusOr<int64_t> {
    if (value.is(Kind::kMissing) || value.is(Kind::kNone)) return otherwise;
    if (!value.is_integer()) return evaluator->Refuse("truncate by a ", TypeName(value));
    return value.integer();
  };
  ASSIGN_OR_RETURN(const int64_t length, integer(values[0], 255));
  ASSIGN_OR_RETURN(const int64_t leeway, integer(values[3], 5));
  const std::string end = values[2].is_string() ? values[2].text() : "...";
  if (!values[2].is(Kind::kMissing) && !values[2].is_string()) return evaluator->Refuse("truncate with such an end");
  const auto end_length = static_cast<int64_t>(CodePoints(end));
  if (length < end_length || leeway < 0) return evaluator->Raise("truncate: the length or leeway is too small");
  const std::string& text = input.text();
  if (static_cast<int64_t>(CodePoints(text)) - leeway <= length) return input;
  std::string kept = text.substr(0, ByteOffset(text, length - end_length));
  if (!IsTrue(values[1])) kept = kept.substr(0, kept.rfind(' '));
  return evaluator->NewString(kept + end);
}

Result Default(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "default", arguments, {"default_value", "boolean"}, 0));
  if (!input.is(Kind::kUndefined) && !(IsTrue(values[1]) && !IsTrue(input))) return input;
  return values[0].is(Kind::kMissing) ? Value::String("") : values[0];
}

Result Absolute(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "abs", arguments, {}, 0).status());
  if (input.is(Kind::kFloat)) return Value::Float(std::fabs(input.number()));
  if (input.is_integer()) return input.integer() < 0 ? Negate(evaluator, input, true) : Value::Int(input.integer());
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  return evaluator->Raise("bad operand type for abs(): '", TypeName(input), "'");
}

// Python's float(text); nullopt: ValueError.
std::optional<double> ParseFloat(absl::string_view text) {
  text = StripRight(StripLeft(text));
  double value = 0;
  for (const char c : text) {
    // No hexadecimal, and absl reads nothing that Python doesn't, but for these.
    if (c == 'x' || c == 'X' || c == '(') return std::nullopt;
  }
  if (text.empty() || !absl::SimpleAtod(text, &value)) return std::nullopt;
  return value;
}

Result FloatToInt(Evaluator* evaluator, double value, const Value& otherwise) {
  if (std::isnan(value) || std::isinf(value)) return otherwise;
  if (value >= 0x1p63 || value < -0x1p63) return evaluator->Refuse("an integer beyond 64 bits");
  return Value::Int(static_cast<int64_t>(value));
}

Result Int(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "int", arguments, {"default", "base"}, 0));
  if (values[1].is_integer() ? values[1].integer() != 10 : !values[1].is(Kind::kMissing))
    return evaluator->Refuse("the filter int with another base than 10");
  const Value otherwise = values[0].is(Kind::kMissing) ? Value::Int(0) : values[0];
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (input.is_integer()) return Value::Int(input.integer());
  if (input.is(Kind::kFloat)) {
    if (std::isinf(input.number())) return evaluator->Raise("cannot convert float infinity to integer");
    return FloatToInt(evaluator, input.number(), otherwise);
  }
  if (!input.is_string()) return otherwise;
  if (!IsAscii(input.text()) || input.text().find('_') != std::string::npos)
    return evaluator->Refuse("the filter int of such a text");
  const absl::string_view text = StripRight(StripLeft(input.text()));
  int64_t value = 0;
  if (absl::SimpleAtoi(text, &value)) return Value::Int(value);
  const size_t digits = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  if (text.size() > digits && text.find_first_not_of("0123456789", digits) == absl::string_view::npos)
    return evaluator->Refuse("an integer beyond 64 bits");
  const std::optional<double> number = ParseFloat(text);
  return number.has_value() ? FloatToInt(evaluator, *number, otherwise) : otherwise;
}

Result Float(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "float", arguments, {"default"}, 0));
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (input.is_number()) return Value::Float(input.number());
  if (input.is_string()) {
    if (!IsAscii(input.text()) || input.text().find('_') != std::string::npos)
      return evaluator->Refuse("the filter float of such a text");
    if (const std::optional<double> number = ParseFloat(input.text()); number.has_value()) return Value::Float(*number);
  }
  return values[0].is(Kind::kMissing) ? Value::Float(0) : values[0];
}

Result Round(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "round", arguments, {"precision", "method"}, 0));
  const std::string method = values[1].is_string() ? values[1].text() : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    return evaluator->Raise("method must be common, ceil or floor");
  const bool precise = values[0].is_integer() ? values[0].integer() != 0 : !values[0].is(Kind::kMissing);
  if (precise) return evaluator->Refuse("the filter round with a precision");
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (!input.is_number()) return evaluator->Raise("type ", TypeName(input), " doesn't define __round__ method");
  const double value = input.number();
  if (method == "common") {
    if (input.is_integer()) return Value::Int(input.integer());
    return Value::Float(std::nearbyint(value));  // halves to even, as Python
  }
  if (input.is_integer()) {
    constexpr int64_t kExact = int64_t{1} << 53;
    if (input.integer() > kExact || input.integer() < -kExact)
      return evaluator->Refuse("rounding an integer beyond 2**53");
    return Value::Float(value);
  }
  if (std::fabs(value) > 0x1p53 || std::isnan(value)) return evaluator->Refuse("rounding a number beyond 2**53");
  const double rounded = method == "ceil" ? std::ceil(value) : std::floor(value);
  return Value::Float(rounded == 0 ? 0.0 : rounded);  // by way of an int, which has no negative zero
}

Result Format(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty())
    return evaluator->Raise("can't handle positional and keyword arguments at the same time");
  ASSIGN_OR_RETURN(const Value text, SoftText(evaluator, input));
  if (text.markup()) return evaluator->Refuse("format of a text marked safe");
  if (arguments.named.empty()) return FormatPercent(evaluator, text.text(), Value::Tuple(arguments.positional));
  auto named = std::make_shared<DictObject>();
  for (const auto& [name, value] : arguments.named) named->Set(name, value);
  return FormatPercent(evaluator, text.text(), Value::Dict(std::move(named)));
}

Result AttributeFilter(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "attr", arguments, {"name"}, 1));
  // Looks at attributes only, never at items.
  if (input.is(Kind::kNamespace) || !values[0].is_string()) return evaluator->Refuse("the filter attr here");
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (FindMethod(input, values[0].text()) != Method::kNone || input.is(Kind::kLoop))
    return GetAttribute(evaluator, input, values[0].text());
  if (values[0].text().rfind("__", 0) == 0) return evaluator->Refuse("the attribute ", values[0].text());
  return Value::Undefined(absl::StrCat("'", TypeName(input), " object' has no attribute '", values[0].text(), "'"));
}

const std::map<absl::string_view, FilterFunction>& Filters() {
  static const auto* const filters = new std::map<absl::string_view, FilterFunction>{{"abs", Absolute},
                                                                                     {"attr", AttributeFilter},
                                                                                     {"capitalize", Capitalize},
                                                                                     {"center", Center},
                                                                                     {"d", Default},
                                                                                     {"default", Default},
                                                                                     {"e", Escape},
                                                                                     {"escape", Escape},
                                                                                     {"float", Float},
                                                                                     {"format", Format},
                                                                                     {"indent", Indent},
                                                                                     {"int", Int},
                                                                                     {"lower", Lower},
                                                                                     {"replace", ReplaceFilter},
                                                                                     {"round", Round},
                                                                                     {"safe", Safe},
                                                                                     {"string", String},
                                                                                     {"title", Title},
                                                                                     {"tojson", ToJson},
                                                                                     {"trim", Trim},
                                                                                     {"truncate", Truncate},
                                                                                     {"upper", Upper}};
  return *filters;
}

constexpr absl::string_view kUnsupportedFilters[] = {"filesizeformat", "forceescape", "groupby",   "pprint",
                                                     "random",         "striptags",   "urlencode", "urlize",
                                                     "wordcount",      "wordwrap",    "xmlattr"};

bool IsUnsupported(absl::string_view name) {
  return std::find(std::begin(kUnsupportedFilters), std::end(kUnsupportedFilters), name) !=
         std::end(kUnsupportedFilters);
}

}  // namespace

bool IsJinjaFilter(const std::string& name) {
  return Filters().count(name) > 0 || FindSequenceFilter(name) != nullptr || IsUnsupported(name);
}

Result ApplyFilter(Evaluator* evaluator, const std::string& name, const Value& input, const CallArguments& arguments) {
  if (const auto found = Filters().find(name); found != Filters().end())
    return found->second(evaluator, input, arguments);
  if (const FilterFunction function = FindSequenceFilter(name); function != nullptr)
    return function(evaluator, input, arguments);
  if (IsUnsupported(name)) return evaluator->Refuse("the filter ", name);
  return evaluator->Raise("No filter named '", name, "' found.");
}

}  // namespace trireme::jinja
