#include "models/family.h"

namespace trireme {

std::vector<ModelFamily> BuiltInFamilies() {
  return {LlamaFamily(),  Qwen2Family(),  Qwen3Family(), SmolLm3Family(),
          Gemma2Family(), Gemma3Family(), Gpt2Family(),  GptNeoxFamily()};
}

absl::StatusOr<ModelFamily> FindFamily(const std::vector<ModelFamily>& families, const std::string& name) {
  std::string known;
  for (const ModelFamily& family : families) {
    if (family.name == name) return family;
    absl::StrAppend(&known, known.empty() ? "" : ", ", family.name);
  }
  return Error(ExitCode::kConfig, "model.family: no family is called \"", name, "\"; known: ", known);
}

}  // namespace trireme
