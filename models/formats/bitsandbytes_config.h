// models/formats/bitsandbytes_config.h
// quantization_config in a config.json, as Transformers writes it for bitsandbytes.
#ifndef TRIREME_MODELS_FORMATS_BITSANDBYTES_CONFIG_H_
#define TRIREME_MODELS_FORMATS_BITSANDBYTES_CONFIG_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/json_file.h"

namespace trireme {

// What cannot be followed is added to `problems`.
void ReadBnbConfig(const nlohmann::json& object, QuantizationConfig* quantization, std::vector<std::string>* problems);

// dtype, as Transformers names it: of what is not quantized.
nlohmann::json WriteBnbConfig(const QuantizationConfig& quantization, const std::string& dtype);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_BITSANDBYTES_CONFIG_H_
