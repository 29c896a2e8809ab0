#include "models/formats/hf/hf_model_type.h"

namespace trireme {

nlohmann::json ToJson(const HfValue& value) {
  return std::visit(
      [](const auto& one) -> nlohmann::json {
        if constexpr (std::is_same_v<std::decay_t<decltype(one)>, std::monostate>) {
          return nullptr;
        } else {
          return one;
        }
      },
      value);
}

const HfModelTypes& BuiltInHfModelTypes() {
  static const HfModelTypes types = {
      {.model_type = "llama",
       .architecture = "LlamaForCausalLM",
       .family = "llama",
       .max_position_embeddings = 2048,
       .attention_bias = true,
       .keys = {{"mlp_bias", false}}},
      {.model_type = "mistral",
       .architecture = "MistralForCausalLM",
       .family = "llama",
       .max_position_embeddings = 131072,
       .num_key_value_heads = 8,
       .windows = HfWindows::kAll,
       .sliding_window = 4096},
      {.model_type = "qwen2",
       .architecture = "Qwen2ForCausalLM",
       .family = "qwen2",
       .max_position_embeddings = 32768,
       .num_key_value_heads = 32,
       .own_head_dim = false,
       .windows = HfWindows::kSwitched,
       .sliding_window = 4096},
      {.model_type = "qwen3",
       .architecture = "Qwen3ForCausalLM",
       .family = "qwen3",
       .max_position_embeddings = 32768,
       .num_key_value_heads = 32,
       .head_dim = 128,
       .windows = HfWindows::kSwitched,
       .sliding_window = 4096,
       .attention_bias = true},
      {.model_type = "smollm3",
       .architecture = "SmolLM3ForCausalLM",
       .family = "smollm3",
       .max_position_embeddings = 32768,
       .num_key_value_heads = 4,
       .own_head_dim = false,
       .tied = true,
       .rope_theta = 2e6,
       .windows = HfWindows::kSwitched,
       .attention_bias = true,
       .no_rope = true},
      {.model_type = "gemma2",
       .architecture = "Gemma2ForCausalLM",
       .family = "gemma2",
       .max_position_embeddings = 8192,
       .num_key_value_heads = 4,
       .head_dim = 256,
       .tied = true,
       .windows = HfWindows::kPattern,
       .sliding_window = 4096,
       .window_period = 2,
       .attention_bias = true,
       .gemma = true,
       .attention_softcap = 50,
       .logit_softcap = 30},
      {.model_type = "gemma3_text",
       .architecture = "Gemma3ForCausalLM",
       .family = "gemma3_text",
       .max_position_embeddings = 131072,
       .num_key_value_heads = 4,
       .head_dim = 256,
       .tied = true,
       .rope_theta = 1e6,
       .windows = HfWindows::kPattern,
       .sliding_window = 4096,
       .window_period = 6,
       .own_period = true,
       .attention_bias = true,
       .gemma = true,
       .local_rope_theta = 10000},
      {.model_type = "gpt2",
       .architecture = "GPT2LMHeadModel",
       .family = "gpt2",
       .max_position_embeddings = 1024,
       .tied = true,
       .read = &ReadGpt2Config,
       .write = &WriteGpt2Config},
      {.model_type = "gpt_neox",
       .architecture = "GPTNeoXForCausalLM",
       .family = "gpt_neox",
       .max_position_embeddings = 2048,
       .partial_rotary = 0.25,
       .neox_rotary = true,
       .read = &ReadGptNeoxConfig,
       .write = &WriteGptNeoxConfig},
  };
  return types;
}

const HfKey* KeyOfField(const HfModelType& type, const std::string& field) {
  for (const HfKey& key : type.keys) {
    if (field == (key.field != nullptr ? key.field : key.key)) return &key;
  }
  return nullptr;
}

void FillDefaults(const HfModelType& type, ModelConfig* model) {
  const auto* reflection = model->GetReflection();
  for (const HfKey& key : type.keys) {
    const auto* field = ModelConfig::descriptor()->FindFieldByName(key.field != nullptr ? key.field : key.key);
    if (field == nullptr || reflection->HasField(*model, field)) continue;
    if (const bool* truth = std::get_if<bool>(&key.by_default)) {
      reflection->SetBool(model, field, *truth);
    } else if (const char* const* text = std::get_if<const char*>(&key.by_default)) {
      reflection->SetString(model, field, *text);
    } else if (const double* number = std::get_if<double>(&key.by_default)) {
      if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT32) {
        reflection->SetInt32(model, field, static_cast<int32_t>(*number));
      } else {
        reflection->SetDouble(model, field, *number);
      }
    }
  }
}

const HfModelType* FindHfModelType(const HfModelTypes& types, const std::string& model_type) {
  for (const HfModelType& type : types) {
    if (model_type == type.model_type) return &type;
  }
  return nullptr;
}

std::string NamesOf(const HfModelTypes& types) {
  std::string names;
  for (const HfModelType& type : types) absl::StrAppend(&names, names.empty() ? "\"" : ", \"", type.model_type, "\"");
  return names;
}

const HfModelType* HfModelTypeOf(const HfModelTypes& types, const ModelConfig& model) {
  if (model.family() == "llama") return FindHfModelType(types, model.sliding_window() > 0 ? "mistral" : "llama");
  for (const HfModelType& type : types) {
    if (model.family() == type.family) return &type;
  }
  return nullptr;
}

}  // namespace trireme
