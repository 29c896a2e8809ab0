#include "models/formats/bitsandbytes_config.h"

namespace trireme {

using Json = nlohmann::json;

void ReadBnbConfig(const Json& object, QuantizationConfig* quantization, std::vector<std::string>* problems) {
  JsonReader json(object, "quantization_config.", problems);
  if (const std::string method = json.Text("quant_method"); method != "bitsandbytes") {
    problems->push_back(absl::StrCat("quantization_config.quant_method: \"", method,
                                     "\" is not supported; \"bitsandbytes\" is, and unquantized models are"));
    return;
  }
  const bool four = json.Bool("load_in_4bit").value_or(false), eight = json.Bool("load_in_8bit").value_or(false);
  if (four == eight)
    problems->push_back("quantization_config: neither or both of load_in_4bit and load_in_8bit are set");
  quantization->set_method(eight ? QuantizationConfig::INT8 : QuantizationConfig::NF4);
  if (four) {
    if (const std::string type = json.Text("bnb_4bit_quant_type"); type != "nf4")
      problems->push_back(absl::StrCat("quantization_config.bnb_4bit_quant_type: \"", type.empty() ? "fp4" : type,
                                       "\" is not supported; \"nf4\" is"));
    quantization->set_double_quantization(json.Bool("bnb_4bit_use_double_quant").value_or(false));
  }
  const Json* skip = json.Find("llm_int8_skip_modules");
  if (skip == nullptr) return;
  if (!skip->is_array()) return json.Bad("llm_int8_skip_modules", *skip, "is no list of names");
  for (const Json& name : *skip) {
    if (!name.is_string()) return json.Bad("llm_int8_skip_modules", *skip, "is no list of names");
    quantization->add_skip_modules(name.get<std::string>());
  }
}

Json WriteBnbConfig(const QuantizationConfig& quantization, const std::string& dtype) {
  const bool four = quantization.method() == QuantizationConfig::NF4;
  Json skip;
  if (!quantization.skip_modules().empty()) {
    // Transformers' own exception, the head, holds only where nothing is named.
    skip = {"lm_head"};
    for (const std::string& name : quantization.skip_modules()) {
      if (name != "lm_head") skip.push_back(name);
    }
  }
  return {{"_load_in_4bit", four},
          {"_load_in_8bit", !four},
          {"bnb_4bit_compute_dtype", dtype},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", four && quantization.double_quantization()},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", skip},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", four},
          {"load_in_8bit", !four},
          {"quant_method", "bitsandbytes"}};
}

}  // namespace trireme
