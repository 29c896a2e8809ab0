// "..." % values and "...".format(...): the conversions that templates use.
#include <algorithm>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"

namespace trireme::jinja {
namespace {

// The digits after a point, or nullopt. `spec` is what stands between % or : and the letter.
std::optional<int> Precision(absl::string_view spec) {
  if (spec.size() < 2 || spec.size() > 3 || spec[0] != '.') return std::nullopt;
  int precision = 0;
  for (const char c : spec.substr(1)) {
    if (c < '0' || c > '9') return std::nullopt;
    precision = precision * 10 + (c - '0');
  }
  return precision;
}

std::string Fixed(double value, int precision) {
  std::string text(std::snprintf(nullptr, 0, "%.*f", precision, value), '\0');
  std::snprintf(text.data(), text.size() + 1, "%.*f", precision, value);
  return text;
}

// One conversion of a % format: the type `letter` with `spec` before it.
absl::StatusOr<std::string> Convert(Evaluator* evaluator, absl::string_view spec, char letter, const Value& value) {
  const std::string shown = absl::StrCat("the format %", spec, std::string(1, letter));
  if (letter == 's' && spec.empty()) return ToText(evaluator, value);
  if (letter == 'r' && spec.empty()) return ToRepr(evaluator, value);
  if ((letter == 'd' || letter == 'i' || letter == 'u') && spec.empty()) {
    if (value.is_integer()) return absl::StrCat(value.integer());
    if (value.is(Kind::kUndefined)) return evaluator->RaiseUndefined(value);
    if (!value.is(Kind::kFloat))
      return evaluator->Raise("%", std::string(1, letter), " format: a real number is required, not ", TypeName(value));
  }
  if (letter == 'f') {
    const std::optional<int> precision = spec.empty() ? 6 : Precision(spec);
    if (precision.has_value() && value.is_number()) return Fixed(value.number(), *precision);
    if (!value.is_number()) return evaluator->Raise("must be real number, not ", TypeName(value));
  }
  return evaluator->Refuse(shown, " of a ", TypeName(value));
}

// format(value, spec).
absl::StatusOr<std::string> FormatValue(Evaluator* evaluator, const Value& value, absl::string_view spec) {
  if (spec.empty()) {
    if (value.is(Kind::kUndefined)) return std::string();
    return ToText(evaluator, value);
  }
  if (spec.back() == 'f' && value.is_number() && value.kind() != Kind::kBool) {
    if (const std::optional<int> precision = Precision(spec.substr(0, spec.size() - 1)); precision.has_value())
      return Fixed(value.number(), *precision);
  }
  return evaluator->Refuse("the format specification '", spec, "' for a ", TypeName(value));
}

}  // namespace

Result FormatPercent(Evaluator* evaluator, const std::string& format, const Value& values) {
  const bool is_tuple = values.is(Kind::kTuple);
  const size_t available = is_tuple ? values.items().size() : 1;
  size_t used = 0;
  bool mapped = false;
  std::string out;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out.push_back(format[at]);
      continue;
    }
    if (++at >= format.size()) return evaluator->Raise("incomplete format");
    Value value;
    bool keyed = false;
    if (format[at] == '(') {
      const size_t end = format.find(')', at);
      if (end == std::string::npos) return evaluator->Raise("incomplete format key");
      if (!values.is(Kind::kDict)) return evaluator->Raise("format requires a mapping");
      const Value* found = values.dict().Find(absl::string_view(format).substr(at + 1, end - at - 1));
      if (found == nullptr) return evaluator->Raise("KeyError: '", format.substr(at + 1, end - at - 1), "'");
      value = *found;
      keyed = mapped = true;
      at = end + 1;
    }
    const size_t begin = at;
    while (at < format.size() && absl::string_view("#0- +.123456789").find(format[at]) != absl::string_view::npos) ++at;
    if (at >= format.size()) return evaluator->Raise("incomplete format");
    const absl::string_view spec = absl::string_view(format).substr(begin, at - begin);
    if (format[at] == '%' && spec.empty() && !keyed) {
      out.push_back('%');
      continue;
    }
    if (!keyed) {
      if (used >= available) return evaluator->Raise("not enough arguments for format string");
      value = is_tuple ? values.items()[used] : values;
      ++used;
    }
    ASSIGN_OR_RETURN(const std::string text, Convert(evaluator, spec, format[at], value));
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size())));
    out += text;
  }
  const bool may_be_left = values.is(Kind::kDict) || values.is(Kind::kList) || mapped;
  if (used < available && !may_be_left) return evaluator->Raise("not all arguments converted during string formatting");
  return evaluator->NewString(std::move(out));
}

Result FormatBraces(Evaluator* evaluator, const std::string& format, const CallArguments& arguments) {
  std::string out;
  size_t next = 0;
  bool automatic = false, numbered = false;
  for (size_t at = 0; at < format.size(); ++at) {
    const char c = format[at];
    if ((c == '{' || c == '}') && at + 1 < format.size() && format[at + 1] == c) {
      out.push_back(c);
      ++at;
      continue;
    }
    if (c == '}') return evaluator->Raise("Single '}' encountered in format string");
    if (c != '{') {
      out.push_back(c);
      continue;
    }
    const size_t end = format.find_first_of("{}", at + 1);
    if (end == std::string::npos) return evaluator->Raise("expected '}' before end of string");
    if (format[end] == '{') return evaluator->Refuse("a format specification with fields in it");
    absl::string_view field = absl::string_view(format).substr(at + 1, end - at - 1), spec, conversion;
    at = end;
    if (const size_t colon = field.find(':'); colon != absl::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    if (const size_t mark = field.find('!'); mark != absl::string_view::npos) {
      conversion = field.substr(mark + 1);
      field = field.substr(0, mark);
    }
    if (field.find_first_of(".[") != absl::string_view::npos)
      return evaluator->Refuse("the format field {", field, "}");
    Value value;
    const bool digits = field.find_first_not_of("0123456789") == absl::string_view::npos;
    if (digits) {
      if (field.size() > 4) return evaluator->Raise("Replacement index ", field, " out of range");
      (field.empty() ? automatic : numbered) = true;
      if (automatic && numbered)
        return evaluator->Raise("cannot switch between manual field specification and automatic field numbering");
      size_t index = 0;
      for (const char digit : field) index = index * 10 + (digit - '0');
      if (field.empty()) index = next++;
      if (index >= arguments.positional.size())
        return evaluator->Raise("Replacement index ", index, " out of range for positional args tuple");
      value = arguments.positional[index];
    } else {
      const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                      [&](const auto& named) { return named.first == field; });
      if (found == arguments.named.end()) return evaluator->Raise("KeyError: '", field, "'");
      value = found->second;
    }
    if (!conversion.empty()) {
      if (conversion != "s" && conversion != "r") return evaluator->Refuse("the format conversion !", conversion);
      ASSIGN_OR_RETURN(std::string text, conversion == "s" ? ToText(evaluator, value) : ToRepr(evaluator, value));
      value = Value::String(std::move(text));
    }
    ASSIGN_OR_RETURN(const std::string text, FormatValue(evaluator, value, spec));
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size())));
    out += text;
  }
  return evaluator->NewString(std::move(out));
}

}  // namespace trireme::jinja
