// models/formats/hf/hf_model_type.h
// What sets the config.json of one of Transformers' model types apart from the others: defaults, and which keys exist.
// A family brings the types it is read from and written as (ModelFamily::hf_types).
#ifndef TRIREME_MODELS_FORMATS_HF_HF_MODEL_TYPE_H_
#define TRIREME_MODELS_FORMATS_HF_HF_MODEL_TYPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/base/json_file.h"

namespace trireme {

enum class HfWindows {
  kNone,
  kAll,       // every layer has sliding_window
  kSwitched,  // use_sliding_window, then the layers from max_window_layers on, or those of layer_types
  kPattern,   // all but each window_period-th layer, or those of layer_types
};

struct HfConfig;

struct HfModelType {
  const char* model_type;
  const char* architecture;
  const char* family;  // ours
  // What Transformers assumes where a file is silent. Sizes are not among it: a file without them is incomplete.
  int32_t max_position_embeddings;
  int32_t num_key_value_heads = 0;  // 0: as many as query heads
  int32_t head_dim = 0;             // 0: hidden_size / num_attention_heads
  bool own_head_dim = true;         // has the key
  bool tied = false;
  double rope_theta = 10000;
  HfWindows windows = HfWindows::kNone;
  int32_t sliding_window = 0;   // 0: none
  int32_t window_period = 0;    // kPattern
  bool own_period = false;      // has sliding_window_pattern
  bool attention_bias = false;  // has the key
  bool no_rope = false;         // has no_rope_layers
  bool gemma = false;           // has soft caps, query_pre_attn_scalar, hidden_activation
  bool local_rope = false;      // layers with a window have frequencies of their own
  double attention_softcap = 0, logit_softcap = 0;
  bool partial_rotary = false;  // has rotary_pct and, for rope_theta, rotary_emb_base
  // Read and write what is not common to all types (hf_config.cc); null: as Llama.
  void (*read)(JsonReader& reader, const HfModelType& type, HfConfig* config,
               std::vector<std::string>* problems) = nullptr;
  void (*write)(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) = nullptr;
};

using HfModelTypes = std::vector<HfModelType>;

const HfModelTypes& BuiltInHfModelTypes();

// Null: none is called so.
const HfModelType* FindHfModelType(const HfModelTypes& types, const std::string& model_type);
std::string NamesOf(const HfModelTypes& types);  // "gemma2", ...

// The type to write a model as. A Llama with a window is a Mistral, since llama has none. Null: no type of this family.
const HfModelType* HfModelTypeOf(const HfModelTypes& types, const ModelConfig& model);

// Sizes, and rotary settings of both dialects (hf_config.h).
void ReadHfSizes(JsonReader& reader, const HfModelType& type, ModelConfig* model);
void ReadHfRotary(JsonReader& reader, const HfModelType& type, ModelConfig* model, std::vector<std::string>* problems);
void WriteHfRotary(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json);

// The keys of GPT-2 and GPT-NeoX (hf_config_gpt.cc).
void ReadGpt2Config(JsonReader& reader, const HfModelType& type, HfConfig* config, std::vector<std::string>* problems);
void WriteGpt2Config(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json);
void ReadGptNeoxConfig(JsonReader& reader, const HfModelType& type, HfConfig* config,
                       std::vector<std::string>* problems);
void WriteGptNeoxConfig(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_HF_MODEL_TYPE_H_
