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
  JsonProblem problem;
  std::optional<Json> parsed = ParseJson<Json>(text, {.max_depth = kMaxDepth, .unique_keys = true}, &problem);
  const bool unreadable = !parsed.has_value();
  if (unreadable && problem.fault != JsonFault::kSyntax)
    return Error(ExitCode::kData, origin, ": ", DescribeJsonProblem(problem));
  if (unreadable || !parsed->is_object())
    return Error(ExitCode::kData, origin, ": is not a JSON object; is the file whole?");
  return *std::move(parsed);
}

std::string DescribeJsonProblem(const JsonProblem& problem) {
  switch (problem.fault) {
    case JsonFault::kZeroByte:
      return "holds a zero byte";
    case JsonFault::kTooDeep:
      return "is nested too deeply";
    case JsonFault::kDuplicateKey:
      return absl::StrCat("names \"", problem.detail, "\" twice");
    case JsonFault::kSyntax:
      return "is not JSON";
  }
  return "";
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
  if (const std::optional<double> number = JsonNumber(*value); number.has_value() && std::isfinite(*number))
    return number;
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
  if (value->is_boolean()) return JsonBool(*value);
  Bad(key, *value, "is neither true nor false");
  return std::nullopt;
}

std::string JsonReader::Text(const std::string& key) {
  const Json* value = Find(key);
  if (value == nullptr) return "";
  if (const std::string* text = JsonText(*value)) return *text;
  Bad(key, *value, "is not a string");
  return "";
}

void JsonReader::Require(const std::string& key, const Json& only, const std::string& why) {
  const Json* value = Find(key);
  if (value != nullptr && *value != only) Bad(key, *value, why);
}

void JsonReader::Bad(const std::string& key, const Json& value, const std::string& why) {
  constexpr size_t kShown = 80;
  std::string text = DumpJson(value);
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
