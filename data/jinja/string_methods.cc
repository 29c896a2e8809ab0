// Methods of str.
#include <algorithm>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"
#include "data/unicode/unicode.h"

namespace trireme::jinja {
namespace {

using Parts = std::vector<absl::string_view>;
using Names = std::initializer_list<absl::string_view>;

Result TextList(Evaluator* evaluator, const Parts& parts, Kind kind = Kind::kList) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const absl::string_view part : parts) {
    ASSIGN_OR_RETURN(Value text, evaluator->NewString(std::string(part)));
    items.push_back(std::move(text));
  }
  return evaluator->NewList(std::move(items), kind);
}

// A str method's arguments; only those in `keywords` may be named.
class Arguments {
 public:
  static absl::StatusOr<Arguments> Read(Evaluator* evaluator, const std::string& method, const CallArguments& given,
                                        Names names, size_t required, bool keywords = false) {
    if (!keywords && !given.named.empty()) return evaluator->Raise("str.", method, "() takes no keyword arguments");
    Arguments arguments;
    arguments.evaluator_ = evaluator;
    arguments.method_ = method;
    ASSIGN_OR_RETURN(arguments.values_, Bind(evaluator, method, given, names, required));
    return arguments;
  }

  bool Given(size_t i) const { return !values_[i].is(Kind::kMissing); }
  const Value& operator[](size_t i) const { return values_[i]; }

  absl::StatusOr<std::string> Text(size_t i) const {
    if (values_[i].is_string()) return values_[i].text();
    if (values_[i].is(Kind::kUndefined))
      return evaluator_->Raise(method_, "() argument is undefined: ", values_[i].text());
    return evaluator_->Raise(method_, "() argument must be str, not ", TypeName(values_[i]));
  }
  // None means nothing given.
  absl::StatusOr<std::optional<std::string>> OptionalText(size_t i) const {
    if (!Given(i) || values_[i].is(Kind::kNone)) return std::nullopt;
    ASSIGN_OR_RETURN(std::string text, Text(i));
    return text;
  }
  absl::StatusOr<int64_t> Integer(size_t i, int64_t otherwise) const {
    if (!Given(i)) return otherwise;
    if (!values_[i].is_integer())
      return evaluator_->Raise("'", TypeName(values_[i]), "' object cannot be interpreted as an integer");
    return values_[i].integer();
  }

 private:
  Evaluator* evaluator_ = nullptr;
  std::string method_;
  std::vector<Value> values_;
};

Result StripMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"chars"}, 0));
  ASSIGN_OR_RETURN(const std::optional<std::string> characters, arguments.OptionalText(0));
  if (characters.has_value()) RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(characters->size())));
  absl::string_view text = self;
  if (name != "rstrip") text = StripLeft(text, characters);
  if (name != "lstrip") text = StripRight(text, characters);
  return evaluator->NewString(std::string(text));
}

Result SplitMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"sep", "maxsplit"}, 0, true));
  ASSIGN_OR_RETURN(const std::optional<std::string> separator, arguments.OptionalText(0));
  ASSIGN_OR_RETURN(const int64_t max_splits, arguments.Integer(1, -1));
  const bool right = name == "rsplit";
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(self.size())));
  if (!separator.has_value())
    return TextList(evaluator, right ? SplitWhitespaceFromRight(self, max_splits) : SplitWhitespace(self, max_splits));
  if (separator->empty()) return evaluator->Raise("empty separator");
  return TextList(evaluator,
                  right ? SplitFromRight(self, *separator, max_splits) : Split(self, *separator, max_splits));
}

Result PartitionMethod(Evaluator* evaluator, const std::string& self, const std::string& name,
                       const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"sep"}, 1));
  ASSIGN_OR_RETURN(const std::string separator, arguments.Text(0));
  if (separator.empty()) return evaluator->Raise("empty separator");
  const bool right = name == "rpartition";
  const absl::string_view text = self;
  const size_t at = right ? text.rfind(separator) : text.find(separator);
  if (at == absl::string_view::npos)
    return TextList(evaluator, right ? Parts{"", "", text} : Parts{text, "", ""}, Kind::kTuple);
  return TextList(evaluator, {text.substr(0, at), separator, text.substr(at + separator.size())}, Kind::kTuple);
}

// startswith, endswith, find, rfind, index, rindex, count, within code points [start, end).
Result SearchMethod(Evaluator* evaluator, const std::string& self, const std::string& name,
                    const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"sub", "start", "end"}, 1));
  absl::string_view text = self;
  size_t begin_bytes = 0;
  for (size_t i = 1; i <= 2; ++i) {
    if (arguments.Given(i) && !arguments[i].is(Kind::kNone) && !arguments[i].is_integer())
      return evaluator->Raise("slice indices must be integers or None or have an __index__ method");
  }
  if (arguments.Given(1) && (arguments[1].kind() != Kind::kNone || arguments.Given(2))) {
    const auto length = static_cast<int64_t>(CodePoints(self));
    const auto bound = [&](size_t i, int64_t otherwise) {
      if (!arguments.Given(i) || arguments[i].is(Kind::kNone)) return otherwise;
      const int64_t index = arguments[i].integer();
      return index >= 0 ? index : index < -length ? 0 : index + length;
    };
    const int64_t begin = bound(1, 0), end = std::min(bound(2, length), length);
    if (begin > end) {  // nothing is found there, not even nothing
      if (name == "startswith" || name == "endswith") return Value::Bool(false);
      if (name == "count") return Value::Int(0);
      return name[0] == 'i' || name == "rindex" ? Result(evaluator->Raise("substring not found")) : Value::Int(-1);
    }
    begin_bytes = ByteOffset(text, begin);
    text = text.substr(begin_bytes, ByteOffset(text.substr(begin_bytes), end - begin));
  }
  if (name == "startswith" || name == "endswith") {
    const auto matches = [&](const Value& value) {
      const absl::string_view part = value.text();
      if (part.size() > text.size()) return false;
      return (name == "startswith" ? text.substr(0, part.size()) : text.substr(text.size() - part.size())) == part;
    };
    if (!arguments[0].is(Kind::kTuple)) {
      RETURN_IF_ERROR(arguments.Text(0).status());
      return Value::Bool(matches(arguments[0]));
    }
    for (const Value& item : arguments[0].items()) {
      if (!item.is_string())
        return evaluator->Raise("tuple for ", name, " must only contain str, not ", TypeName(item));
      if (matches(item)) return Value::Bool(true);
    }
    return Value::Bool(false);
  }
  ASSIGN_OR_RETURN(const std::string part, arguments.Text(0));
  if (name == "count") {
    if (part.empty()) return Value::Int(static_cast<int64_t>(CodePoints(text)) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = text.find(part, at)) != absl::string_view::npos; at += part.size()) ++count;
    return Value::Int(count);
  }
  const size_t at = name == "find" || name == "index" ? text.find(part) : text.rfind(part);
  if (at != absl::string_view::npos)
    return Value::Int(static_cast<int64_t>(CodePoints(absl::string_view(self).substr(0, begin_bytes + at))));
  if (name == "index" || name == "rindex") return evaluator->Raise("substring not found");
  return Value::Int(-1);
}

Result JoinMethod(Evaluator* evaluator, const std::string& self, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, "join", given, {"iterable"}, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(arguments[0]));
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string())
      return evaluator->Raise("sequence item ", i, ": expected str instance, ", TypeName(items[i]), " found");
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(self.size() + items[i].text().size())));
    if (i > 0) text += self;
    text += items[i].text();
  }
  return evaluator->NewString(std::move(text));
}

Result PadMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"width", "fillchar"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, arguments.Integer(0, 0));
  std::string fill = name == "zfill" ? "0" : " ";
  if (arguments.Given(1)) {
    if (name == "zfill") return evaluator->Raise("str.zfill() takes exactly one argument");
    ASSIGN_OR_RETURN(fill, arguments.Text(1));
    if (CodePoints(fill) != 1) return evaluator->Raise("The fill character must be exactly one character long");
  }
  const int64_t missing = width - static_cast<int64_t>(CodePoints(self));
  if (missing <= 0) return evaluator->NewString(self);
  int64_t size;
  if (__builtin_mul_overflow(missing, static_cast<int64_t>(fill.size()), &size)) size = INT64_MAX;
  RETURN_IF_ERROR(evaluator->Charge(size));
  // str.center puts the odd one to the left if the width is odd.
  const int64_t left = name == "ljust" ? 0 : name == "center" ? missing / 2 + (missing & width & 1) : missing;
  std::string out;
  const bool sign = name == "zfill" && !self.empty() && (self[0] == '-' || self[0] == '+');
  if (sign) out.push_back(self[0]);
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += sign ? self.substr(1) : self;
  for (int64_t i = left; i < missing; ++i) out += fill;
  return evaluator->NewString(std::move(out));
}

// isalpha and its like, for ASCII only.
Result ClassMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  RETURN_IF_ERROR(Arguments::Read(evaluator, name, given, {}, 0).status());
  if (name == "isascii") return Value::Bool(IsAscii(self));
  if (name == "isspace") {
    return Value::Bool(!self.empty() && StripLeft(self).empty());
  }
  if (name == "islower" || name == "isupper") {
    RETURN_IF_ERROR(CheckCase(evaluator, name, self));
    const auto has = [&](char first, char last) {
      return std::any_of(self.begin(), self.end(), [=](char c) { return c >= first && c <= last; });
    };
    const bool lower = has('a', 'z'), upper = has('A', 'Z');
    return Value::Bool(name == "islower" ? lower && !upper : upper && !lower);
  }
  if (!IsAscii(self)) return evaluator->Refuse(name, "() of a text beyond ASCII");
  const bool letters = name == "isalpha" || name == "isalnum", digits = name != "isalpha";
  return Value::Bool(!self.empty() && std::all_of(self.begin(), self.end(), [=](char c) {
    const bool digit = c >= '0' && c <= '9', letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return (digit && digits) || (letter && letters);
  }));
}

Result CaseMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  RETURN_IF_ERROR(Arguments::Read(evaluator, name, given, {}, 0).status());
  RETURN_IF_ERROR(CheckCase(evaluator, name, self));
  if (name == "lower") return evaluator->NewString(AsciiLower(self));
  if (name == "upper") return evaluator->NewString(AsciiUpper(self));
  return evaluator->NewString(name == "title" ? AsciiTitle(self) : AsciiCapitalize(self));
}

Result AffixMethod(Evaluator* evaluator, const std::string& self, const std::string& name, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"affix"}, 1));
  ASSIGN_OR_RETURN(const std::string affix, arguments.Text(0));
  absl::string_view text = self;
  if (text.size() >= affix.size()) {
    if (name == "removeprefix" && text.substr(0, affix.size()) == affix)
      text.remove_prefix(affix.size());
    else if (name == "removesuffix" && text.substr(text.size() - affix.size()) == affix)
      text.remove_suffix(affix.size());
  }
  return evaluator->NewString(std::string(text));
}

Result ReplaceMethod(Evaluator* evaluator, const std::string& self, const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, "replace", given, {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const std::string from, arguments.Text(0));
  ASSIGN_OR_RETURN(const std::string to, arguments.Text(1));
  ASSIGN_OR_RETURN(const int64_t count, arguments.Integer(2, -1));
  return ReplaceText(evaluator, self, from, to, count);
}

using MethodFunction = Result (*)(Evaluator*, const std::string&, const std::string&, const CallArguments&);

Result SplitLinesMethod(Evaluator* evaluator, const std::string& self, const std::string& name,
                        const CallArguments& given) {
  ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Read(evaluator, name, given, {"keepends"}, 0, true));
  return TextList(evaluator, SplitLines(self, arguments.Given(0) && IsTrue(arguments[0])));
}

MethodFunction Find(absl::string_view name) {
  const auto is = [name](Names names) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (is({"strip", "lstrip", "rstrip"})) return StripMethod;
  if (is({"split", "rsplit"})) return SplitMethod;
  if (is({"partition", "rpartition"})) return PartitionMethod;
  if (is({"startswith", "endswith", "find", "rfind", "index", "rindex", "count"})) return SearchMethod;
  if (is({"ljust", "rjust", "center", "zfill"})) return PadMethod;
  if (is({"isalpha", "isalnum", "isdigit", "isdecimal", "isnumeric", "isascii", "isspace", "islower", "isupper"}))
    return ClassMethod;
  if (is({"lower", "upper", "title", "capitalize"})) return CaseMethod;
  if (is({"removeprefix", "removesuffix"})) return AffixMethod;
  if (is({"splitlines"})) return SplitLinesMethod;
  return nullptr;
}

}  // namespace

Result ReplaceText(Evaluator* evaluator, const std::string& text, const std::string& from, const std::string& to,
                   int64_t count) {
  int64_t places = 0;
  if (from.empty()) {
    places = static_cast<int64_t>(text.size()) + 1;
  } else {
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += from.size()) ++places;
  }
  if (count >= 0) places = std::min(places, count);
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size() + places * to.size())));  // both are below 2**31
  return evaluator->NewString(Replace(text, from, to, count));
}

absl::Status CheckCase(Evaluator* evaluator, absl::string_view operation, absl::string_view text) {
  if (!HasCasedBeyondAscii(text)) return absl::OkStatus();
  return evaluator->Refuse(operation, " of letters beyond ASCII");
}

Method FindStringMethod(const std::string& name) {
  if (name == "join" || name == "replace" || name == "format" || Find(name) != nullptr) return Method::kSupported;
  static constexpr absl::string_view kOthers[] = {"casefold", "encode",      "expandtabs", "format_map", "isidentifier",
                                                  "istitle",  "isprintable", "maketrans",  "swapcase",   "translate"};
  return std::find(std::begin(kOthers), std::end(kOthers), name) == std::end(kOthers) ? Method::kNone
                                                                                      : Method::kUnsupported;
}

Result CallStringMethod(Evaluator* evaluator, const Value& self, const std::string& name,
                        const CallArguments& arguments) {
  const std::string& text = self.text();
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size())));
  if (name == "join") return JoinMethod(evaluator, text, arguments);
  if (name == "replace") return ReplaceMethod(evaluator, text, arguments);
  if (name == "format") return FormatBraces(evaluator, text, arguments);
  const MethodFunction function = Find(name);
  TRIREME_CHECK(function != nullptr, name);
  return function(evaluator, text, name, arguments);
}

}  // namespace trireme::jinja
