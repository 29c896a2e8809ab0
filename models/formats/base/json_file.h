// models/formats/base/json_file.h
// The JSON files of a model directory, which may come from anyone.
#ifndef TRIREME_MODELS_FORMATS_BASE_JSON_FILE_H_
#define TRIREME_MODELS_FORMATS_BASE_JSON_FILE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/json.h"
#include "launch/base/status.h"

namespace trireme {

// The object that `text` is. Refuses (kData, naming `origin`) what is no JSON object, what names a key twice in one
// object and what is nested deeper than any such file needs.
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text, const std::string& origin);
// What is wrong with a file: "holds a zero byte", "names "x" twice".
std::string DescribeJsonProblem(const JsonProblem& problem);
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

// Reads an object's keys one by one and remembers which; what is wrong is added to `problems`, each beginning with
// PREFIXkey. The object must outlive it.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string prefix, std::vector<std::string>* problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  // All give nothing when the key is absent or null, or (a problem) of another type.
  const nlohmann::json* Find(const std::string& key);
  std::optional<double> Number(const std::string& key);
  std::optional<int32_t> Integer(const std::string& key);
  std::optional<bool> Bool(const std::string& key);
  std::string Text(const std::string& key);

  // A problem unless the key is absent, null or `only`.
  void Require(const std::string& key, const nlohmann::json& only, const std::string& why);

  bool Has(const std::string& key) const { return object_.contains(key); }  // null, too
  void Bad(const std::string& key, const nlohmann::json& value, const std::string& why);
  std::vector<std::string> Rest() const;  // keys that nobody asked for

 private:
  const nlohmann::json& object_;
  std::string prefix_;
  std::vector<std::string>* problems_;
  std::set<std::string> seen_;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_BASE_JSON_FILE_H_
