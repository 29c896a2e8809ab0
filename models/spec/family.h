// models/spec/family.h
// A model family as a record. A new one is a function from configuration to DecoderSpec and a line in a list.
#ifndef TRIREME_MODELS_SPEC_FAMILY_H_
#define TRIREME_MODELS_SPEC_FAMILY_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/hf/hf_config.h"
#include "models/formats/hf/hf_model_type.h"
#include "models/spec/decoder_spec.h"
#include "models/spec/weight_table.h"

namespace trireme {

struct ModelFamily {
  std::string name;  // ModelConfig.family
  // Checks the configuration and fills in what it leaves open; every problem is appended to `problems`
  // ("model.hidden_size: ... ; remedy").
  DecoderSpec (*specify)(const ModelConfig& config, std::vector<std::string>* problems);
  WeightNames weights = {};    // of its checkpoints
  HfModelTypes hf_types = {};  // config.json's it is read from and written as; none: neither
};

// The Hugging Face model types of all `families`.
HfModelTypes HfTypesOf(const std::vector<ModelFamily>& families);

// Llama 2/3 (arXiv 2302.13971, 2407.21783), SmolLM2 and Mistral: RMSNorm before, grouped queries, rotary positions,
// SwiGLU.
ModelFamily LlamaFamily();
ModelFamily Qwen2Family();    // arXiv 2407.10671: biases on q, k and v
ModelFamily Qwen3Family();    // arXiv 2505.09388: q and k are normed per head
ModelFamily SmolLm3Family();  // some layers do not rotate
ModelFamily GemmaFamily();    // arXiv 2403.08295: norms 1 + w, scaled embeddings, GELU
ModelFamily Gemma2Family();   // arXiv 2408.00118: norms 1 + w before and after, soft caps, scaled embeddings, GELU
ModelFamily Gemma3Family();   // arXiv 2503.19786, its text model: as Gemma 2, normed heads instead of soft caps
ModelFamily Gpt2Family();     // learned positions, LayerNorm, GELU, biases
ModelFamily GptNeoxFamily();  // arXiv 2204.06745, Pythia (2304.01373): partial rotation, parallel residual

ModelFamily MinistralFamily();
ModelFamily Ernie45Family();
ModelFamily HeliumFamily();
ModelFamily SeedOssFamily();
ModelFamily ArceeFamily();
ModelFamily Exaone4Family();
ModelFamily HunYuanDenseFamily();
ModelFamily StableLmFamily();
ModelFamily ApertusFamily();
ModelFamily NemotronFamily();
ModelFamily PhiFamily();
ModelFamily Phi3Family();
ModelFamily OlmoFamily();
ModelFamily Olmo2Family();
ModelFamily Olmo3Family();
ModelFamily GraniteFamily();
ModelFamily CohereFamily();
ModelFamily Cohere2Family();
ModelFamily GlmFamily();
ModelFamily Glm4Family();
ModelFamily Starcoder2Family();
ModelFamily FalconFamily();
ModelFamily OptFamily();
ModelFamily BloomFamily();

// Mixtures of experts.
ModelFamily Qwen3MoeFamily();
ModelFamily MixtralFamily();
ModelFamily OlmoeFamily();
ModelFamily Qwen2MoeFamily();
ModelFamily Glm4MoeFamily();
ModelFamily GraniteMoeFamily();
ModelFamily GptOssFamily();
ModelFamily DeepseekV2Family();
ModelFamily DeepseekV3Family();

// The configuration with its open fields filled in, which mean what the first of the family's hf_types says.
ModelConfig Filled(const ModelFamily& family, const ModelConfig& config);

// What `family` makes of the configuration, filled in, with the names of its checkpoints.
DecoderSpec Specify(const ModelFamily& family, const ModelConfig& config, std::vector<std::string>* problems);

// The families built in; a program outside the tree passes more to Main().
std::vector<ModelFamily> BuiltInFamilies();

// The family called `name`; the error lists the known ones.
absl::StatusOr<ModelFamily> FindFamily(const std::vector<ModelFamily>& families, const std::string& name);

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_FAMILY_H_
