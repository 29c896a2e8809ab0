// launch/base/json.h
// Reading JSON that anyone may have written. nlohmann's own accessors throw, or are undefined, where a key is missing
// or a value has another type than expected; these have an answer for every value. Code that reads foreign JSON uses
// nothing else (tests/launch/foreign_input_test). J is nlohmann::json or nlohmann::ordered_json.
#ifndef TRIREME_LAUNCH_BASE_JSON_H_
#define TRIREME_LAUNCH_BASE_JSON_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace trireme {

enum class JsonFault { kZeroByte, kSyntax, kTooDeep, kDuplicateKey };
struct JsonProblem {
  JsonFault fault = JsonFault::kSyntax;
  std::string detail;  // what the parser says (at most 200 bytes); the key that stands twice
};

struct JsonLimits {
  int max_depth = 0;         // of objects and lists in one another; 0: any
  bool unique_keys = false;  // refuse a key that stands twice in one object, of which readers pick one or the other
};

// The value that `text` is, or nothing and what is wrong with it. Never throws for what stands in the text.
template <typename J>
std::optional<J> ParseJson(absl::string_view text, const JsonLimits& limits, JsonProblem* problem);
extern template std::optional<nlohmann::json> ParseJson(absl::string_view, const JsonLimits&, JsonProblem*);
extern template std::optional<nlohmann::ordered_json> ParseJson(absl::string_view, const JsonLimits&, JsonProblem*);

// On one line, or indented. What is not UTF-8 is written as U+FFFD.
template <typename J>
std::string DumpJson(const J& value, int indent = -1) {
  return value.dump(indent, ' ', false, J::error_handler_t::replace);
}

// The value of `key`; null when there is no such key or `object` is no object. It lives as long as `object`.
template <typename J>
const J& JsonMember(const J& object, absl::string_view key) {
  static const J absent;
  if (!object.is_object()) return absent;
  const auto found = object.find(std::string(key));
  return found == object.end() ? absent : *found;
}

// The string that `value` is; null when it is none.
template <typename J>
const std::string* JsonText(const J& value) {
  return value.template get_ptr<const typename J::string_t*>();
}
template <typename J>
std::string JsonTextOr(const J& value, absl::string_view otherwise) {
  const std::string* text = JsonText(value);
  return text == nullptr ? std::string(otherwise) : *text;
}

template <typename J>
std::optional<bool> JsonBool(const J& value) {
  const auto* flag = value.template get_ptr<const typename J::boolean_t*>();
  return flag == nullptr ? std::nullopt : std::optional<bool>(*flag);
}

// A whole number that is written as one and fits 64 bits with sign.
template <typename J>
std::optional<int64_t> JsonInteger(const J& value) {
  if (const auto* natural = value.template get_ptr<const typename J::number_unsigned_t*>()) {
    if (*natural > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(*natural);
  }
  const auto* whole = value.template get_ptr<const typename J::number_integer_t*>();
  return whole == nullptr ? std::nullopt : std::optional<int64_t>(*whole);
}

// A whole number from 0 on.
template <typename J>
std::optional<uint64_t> JsonNatural(const J& value) {
  const auto* natural = value.template get_ptr<const typename J::number_unsigned_t*>();
  return natural == nullptr ? std::nullopt : std::optional<uint64_t>(*natural);
}

// Any number.
template <typename J>
std::optional<double> JsonNumber(const J& value) {
  if (!value.is_number()) return std::nullopt;
  if (const auto* real = value.template get_ptr<const typename J::number_float_t*>()) return *real;
  if (const auto* natural = value.template get_ptr<const typename J::number_unsigned_t*>())
    return static_cast<double>(*natural);
  return static_cast<double>(*value.template get_ptr<const typename J::number_integer_t*>());
}

// The elements of a list; none when `value` is no list.
template <typename J>
const typename J::array_t& JsonList(const J& value) {
  static const typename J::array_t none;
  const auto* list = value.template get_ptr<const typename J::array_t*>();
  return list == nullptr ? none : *list;
}

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_JSON_H_
