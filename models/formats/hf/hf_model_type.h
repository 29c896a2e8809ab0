// models/formats/hf/hf_model_type.h
// What sets the config.json of one of Transformers' model types apart from the others: defaults, and which keys exist.
// A family brings the types it is read from and written as (ModelFamily::hf_types).
#ifndef TRIREME_MODELS_FORMATS_HF_HF_MODEL_TYPE_H_
#define TRIREME_MODELS_FORMATS_HF_HF_MODEL_TYPE_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/base/json_file.h"

namespace trireme {

enum class HfWindows {
  kNone,
  kOff,       // has use_sliding_window, which must be false
  kAll,       // every layer has sliding_window
  kSwitched,  // use_sliding_window, then the layers from max_window_layers on, or those of layer_types
  kPattern,   // all but each window_period-th layer (0: all), or those of layer_types
};

struct HfConfig;

// A value of config.json; the first: none.
using HfValue = std::variant<std::monostate, bool, double, const char*>;
nlohmann::json ToJson(const HfValue& value);

// A key of config.json that is a field of ModelConfig.
struct HfKey {
  const char* key;
  HfValue by_default;           // what Transformers assumes where a file is silent; none: the field stays open
  const char* field = nullptr;  // ours, where it is not called like the key
};

// A key that is understood with one value only, which absence means, too.
struct HfOnly {
  const char* key;
  HfValue value;
  const char* why;
};

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
  double local_rope_theta =
      0;  // layers with a window have frequencies of their own, this their base by default; 0: not
  double attention_softcap = 0, logit_softcap = 0;
  double partial_rotary = 0;     // has partial_rotary_factor, this by default; 0: it has not
  bool neox_rotary = false;      // calls it rotary_pct and, for rope_theta, rotary_emb_base
  int32_t original_context = 0;  // has original_max_position_embeddings beside the numbers of rotation; 0: has not
  bool rope_alpha = false;       // rope type dynamic may have alpha
  double rms_norm_eps = 1e-6;    // 0: has no such key
  double initializer_range = 0.02;
  std::vector<HfKey> keys = {};  // beside those of all types, or instead of them where the field is the same
  std::vector<HfOnly> only = {};
  std::vector<const char*> elsewhere = {};  // keys of all types that the functions below take care of
  std::vector<const char*> dropouts = {};   // published files set them; there is no dropout here
  // Reads and writes what else the type has, after everything above; null: nothing.
  void (*read_more)(JsonReader& reader, HfConfig* config) = nullptr;
  void (*write_more)(const ModelConfig& model, nlohmann::ordered_json* json) = nullptr;
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

// The key that stands for a field of ours; null: the one of that name, where the type has it.
const HfKey* KeyOfField(const HfModelType& type, const std::string& field);

// Sets the fields of `type.keys` that are open to what Transformers assumes.
void FillDefaults(const HfModelType& type, ModelConfig* model);

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
