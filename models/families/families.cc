#include "models/spec/family.h"
#include "models/spec/parameters.h"

namespace trireme {

std::vector<ModelFamily> BuiltInFamilies() {
  std::vector<ModelFamily> families = {
      LlamaFamily(),        Qwen2Family(),     Qwen3Family(),   SmolLm3Family(),    GemmaFamily(),
      Gemma2Family(),       Gemma3Family(),    Gpt2Family(),    GptNeoxFamily(),    MinistralFamily(),
      PhiFamily(),          Phi3Family(),      OlmoFamily(),    Olmo2Family(),      Olmo3Family(),
      GraniteFamily(),      CohereFamily(),    Cohere2Family(), GlmFamily(),        Glm4Family(),
      Ernie45Family(),      HeliumFamily(),    SeedOssFamily(), ArceeFamily(),      Exaone4Family(),
      HunYuanDenseFamily(), StableLmFamily(),  ApertusFamily(), NemotronFamily(),   Starcoder2Family(),
      FalconFamily(),       OptFamily(),       BloomFamily(),   Qwen3MoeFamily(),   MixtralFamily(),
      OlmoeFamily(),        Qwen2MoeFamily(),  Glm4MoeFamily(), GraniteMoeFamily(), GptOssFamily(),
      DeepseekV2Family(),   DeepseekV3Family()};
  for (ModelFamily& family : families) {
    for (const HfModelType& type : BuiltInHfModelTypes()) {
      if (family.name == type.family) family.hf_types.push_back(type);
    }
  }
  return families;
}

ModelConfig Filled(const ModelFamily& family, const ModelConfig& config) {
  ModelConfig filled = config;
  if (family.hf_types.empty()) return filled;
  const HfModelType& type = family.hf_types[0];
  FillDefaults(type, &filled);
  if (type.partial_rotary > 0 && !filled.has_partial_rotary_factor())
    filled.set_partial_rotary_factor(type.partial_rotary);
  return filled;
}

DecoderSpec Specify(const ModelFamily& family, const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = family.specify(Filled(family, config), problems);
  spec.names = std::make_shared<const WeightNames>(family.weights);
  CheckQuantization(spec, problems);
  return spec;
}

HfModelTypes HfTypesOf(const std::vector<ModelFamily>& families) {
  HfModelTypes types;
  for (const ModelFamily& family : families) types.insert(types.end(), family.hf_types.begin(), family.hf_types.end());
  return types;
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
