#include "launch/base/json.h"

#include <unordered_set>

namespace trireme {

template <typename J>
std::optional<J> ParseJson(absl::string_view text, const JsonLimits& limits, JsonProblem* problem) {
  // The parser takes a zero byte for the end of its input and would not look at what follows.
  if (text.find('\0') != absl::string_view::npos) {
    *problem = {JsonFault::kZeroByte, ""};
    return std::nullopt;
  }
  bool too_deep = false;
  std::optional<std::string> twice;
  std::vector<std::unordered_set<std::string>> keys;  // seen in each open object
  const typename J::parser_callback_t check = [&](int depth, typename J::parse_event_t event, J& parsed) {
    too_deep = too_deep || (limits.max_depth > 0 && depth > limits.max_depth);
    if (too_deep || twice.has_value()) return false;
    if (!limits.unique_keys) return true;
    if (event == J::parse_event_t::object_start) keys.emplace_back();
    if (event == J::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == J::parse_event_t::key && !keys.empty()) {
      std::string key = JsonTextOr(parsed, "");
      if (!keys.back().insert(key).second) twice = std::move(key);
    }
    return !twice.has_value();
  };
  J parsed;
  const bool looks = limits.max_depth > 0 || limits.unique_keys;
  try {
    parsed = J::parse(text.begin(), text.end(), looks ? check : typename J::parser_callback_t(nullptr));
  } catch (const typename J::exception& error) {
    *problem = {JsonFault::kSyntax, std::string(error.what()).substr(0, 200)};
    if (!too_deep && !twice.has_value()) return std::nullopt;
  }
  if (too_deep) {
    *problem = {JsonFault::kTooDeep, ""};
    return std::nullopt;
  }
  if (twice.has_value()) {
    *problem = {JsonFault::kDuplicateKey, *std::move(twice)};
    return std::nullopt;
  }
  return parsed;
}

template std::optional<nlohmann::json> ParseJson(absl::string_view, const JsonLimits&, JsonProblem*);
template std::optional<nlohmann::ordered_json> ParseJson(absl::string_view, const JsonLimits&, JsonProblem*);

}  // namespace trireme
