// Which record is for a file or a model.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <functional>

#include "models/formats/gguf/gguf_architecture.h"

namespace trireme {
namespace {

const GgufArchitecture* First(const ModelConfig& model, const std::function<bool(const GgufArchitecture&)>& fits) {
  for (const GgufArchitecture& record : GgufArchitectures()) {
    if (fits(record) && (record.when == nullptr || record.when(model))) return &record;
  }
  return nullptr;
}

}  // namespace

const GgufArchitecture* FindGgufArchitecture(absl::string_view name, const GgufHeader& header,
                                             const ModelConfig& model) {
  const auto contradicts = [&](const auto& constant) {
    const GgufValue* value = header.Find(absl::StrCat(name, ".", constant.first));
    return value != nullptr && *value != constant.second;
  };
  return First(model, [&](const GgufArchitecture& record) {
    return name == record.name && std::none_of(record.constants.begin(), record.constants.end(), contradicts);
  });
}

const GgufArchitecture* GgufArchitectureOf(const ModelConfig& model) {
  return First(model, [&](const GgufArchitecture& record) { return model.family() == record.family; });
}

bool KnowsGgufArchitecture(absl::string_view name) {
  return std::any_of(GgufArchitectures().begin(), GgufArchitectures().end(),
                     [&](const GgufArchitecture& record) { return name == record.name; });
}

std::string KnownGgufArchitectures() {
  std::string names;
  absl::string_view last;
  for (const GgufArchitecture& record : GgufArchitectures()) {
    if (last != record.name) absl::StrAppend(&names, names.empty() ? "" : ", ", record.name);
    last = record.name;
  }
  return names;
}

}  // namespace trireme
