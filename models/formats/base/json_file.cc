#include "models/formats/base/json_file.h"

#include <cmath>
#include <limits>

#include "launch/base/file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxBytes = uint64_t{256} << 20;  // An index of a million tensors takes half of it.
constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<Json> ParseJsonObject(const std::string& text, const std::string& origin) {
  std::vector<std::set<std::string>> keys;
  std::string problem;
  const Json::parser_callback_t check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth && problem.empty()) problem = "is nested too deeply";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() && !keys.back().insert(parsed.get<std::string>()).second &&
        problem.empty()) {
      problem = absl::StrCat("names \"", parsed.get<std::string>(), "\" twice");
    }
    return problem.empty();
  };
  // The parser takes a zero byte for the end of its input and would not look at what follows.
  if (text.find('\0') != std::string::npos) return Error(ExitCode::kData, origin, ": holds a zero byte");
  Json parsed = Json::parse(text, check, /*allow_exceptions=*/false);
  if (!problem.empty()) return Error(ExitCode::kData, origin, ": ", problem);
  if (!parsed.is_object()) return Error(ExitCode::kData, origin, ": is not a JSON object; is the file whole?");
  return parsed;
}

absl::StatusOr<Json> ReadJsonObject(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  return ParseJsonObject(text, path);
}

const Json* JsonReader::Find(const std::string& key) {
  seen_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<double> JsonReader::Number(const std::string& key) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number() && std::isfinite(value->get<double>())) return value->get<double>();
  Bad(key, *value, "is not a number");
  return std::nullopt;
}

std::optional<int32_t> JsonReader::Integer(const std::string& key) {
  const std::optional<double> number = Number(key);
  if (!number.has_value()) return std::nullopt;
  // Some files write 4096.0 for 4096.
  if (*number == std::floor(*number) && std::abs(*number) <= std::numeric_limits<int32_t>::max())
    return static_cast<int32_t>(*number);
  Bad(key, *Find(key), "is not a whole number of 32 bits");
  return std::nullopt;
}

std::optional<bool> JsonReader::Bool(const std::string& key) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  Bad(key, *value, "is neither true nor false");
  return std::nullopt;
}

std::string JsonReader::Text(const std::string& key) {
  const Json* value = Find(key);
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  Bad(key, *value, "is not a string");
  return "";
}

void JsonReader::Require(const std::string& key, const Json& only, const std::string& why) {
  const Json* value = Find(key);
  if (value != nullptr && *value != only) Bad(key, *value, why);
}

void JsonReader::Bad(const std::string& key, const Json& value, const std::string& why) {
  constexpr size_t kShown = 80;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  problems_->push_back(absl::StrCat(prefix_, key, ": ", text, " ", why));
}

std::vector<std::string> JsonReader::Rest() const {
  std::vector<std::string> rest;
  for (const auto& [key, value] : object_.items()) {
    if (seen_.count(key) == 0) rest.push_back(key);
  }
  return rest;
}

}  // namespace trireme
