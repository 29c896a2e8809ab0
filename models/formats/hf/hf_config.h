// models/formats/hf/hf_config.h
// Hugging Face's config.json of the model types in hf_model_type.cc, and our ModelConfig.
//
// Rotary positions have two dialects: rope_theta with rope_scaling (Transformers 4, most other engines) and
// rope_parameters (Transformers 5). Both are read, and must agree where a file has both; both are written, because an
// engine that misses its own takes another theta without a word.
#ifndef TRIREME_MODELS_FORMATS_HF_HF_CONFIG_H_
#define TRIREME_MODELS_FORMATS_HF_HF_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "launch/base/status.h"
#include "models/formats/hf/hf_model_type.h"

namespace trireme {

// Ids that config.json and generation_config.json name; empty: none.
struct HfTokenIds {
  std::optional<int64_t> bos, pad;
  std::vector<int64_t> eos;
};

struct HfConfig {
  // Every field that the file or Transformers' default for it determines; no from, config. Our default family is left
  // open.
  ModelConfig model;
  HfTokenIds ids;
  std::string dtype;                 // "float32", ...; "" when the file does not say
  std::vector<std::string> ignored;  // keys that do not change numbers, beyond the usual bookkeeping
};

// Parses the config.json of one of `types`. Errors are kData, name `origin` and list every key that is malformed or
// could change numbers in a way this program does not follow (hidden_act other than silu, biases, dropout,
// quantization, an unknown key with a value, ...).
absl::StatusOr<HfConfig> ParseHfConfig(const std::string& text, const std::string& origin, const HfModelTypes& types);
absl::StatusOr<HfConfig> ReadHfConfig(const std::string& path, const HfModelTypes& types);

// The ids alone, of any model type.
absl::StatusOr<HfTokenIds> ReadHfTokenIds(const std::string& path);

// config.json of a model whose fields are all filled in, as `type` (HfModelTypeOf). dtype as Transformers names it.
std::string WriteHfConfig(const ModelConfig& model, const HfModelType& type, const HfTokenIds& ids,
                          const std::string& dtype);

// Sets in `model` what `file` says. A field already set in `model` to something else is a problem naming both
// ("model.hidden_size: is 64, but DIR/config.json says 128; remove it").
void MergeHfConfig(const ModelConfig& file, const std::string& origin, ModelConfig* model,
                   std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_HF_CONFIG_H_
