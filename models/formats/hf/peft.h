// models/formats/hf/peft.h
// adapter_config.json and tensor names of a PEFT adapter directory (github.com/huggingface/peft, LoraConfig), beside
// adapter_model.safetensors.
#ifndef TRIREME_MODELS_FORMATS_HF_PEFT_H_
#define TRIREME_MODELS_FORMATS_HF_PEFT_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "launch/base/status.h"

namespace trireme {

inline constexpr char kPeftConfigName[] = "adapter_config.json";
inline constexpr char kPeftWeightsName[] = "adapter_model.safetensors";

struct PeftConfig {
  AdapterConfig adapter;      // `from` is not set
  std::string base;           // base_model_name_or_path; may be ""
  bool transposed = false;    // fan_in_fan_out: the base's files hold matrices as [inputs, outputs]
  bool weights_tied = false;  // ensure_weight_tying: of a tied matrix in modules_to_save both uses are trained
};

// Refuses (kData, naming file and key) what is no LoRA of a causal language model, and settings that change what the
// adapter computes and are not understood.
absl::StatusOr<PeftConfig> ReadPeftConfig(const std::string& folder);

// `targets`, `parameters`: what target_modules and target_parameters are to say, instead of what the adapter's config
// says.
std::string WritePeftConfig(const PeftConfig& config, const std::vector<std::string>& targets,
                            const std::vector<std::string>& parameters);

// "model.layers.0.self_attn.q_proj.lora_A.weight" <-> "base_model.model.model.layers...". What does not begin so is "".
std::string ToPeftName(const std::string& canonical);
std::string FromPeftName(const std::string& name);

// Sets what the PEFT directory adapter.from says, or nothing without it. Fields set beside it that shape the adapter
// must agree with it; those of training (dropout, rates, initialization) are the config's own. What does not fit is
// appended to `problems`.
void ResolveAdapterConfig(AdapterConfig* adapter, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_PEFT_H_
