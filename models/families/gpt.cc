#include "models/families/gpt.h"

#include <cmath>

#include "models/spec/family.h"

namespace trireme {

DecoderSpec SpecifyGpt(const ModelConfig& config, const std::string& activation, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyDecoder(config, problems);
  spec.gpt_block = true;
  if (!(config.layer_norm_eps() >= 0) || !std::isfinite(config.layer_norm_eps()))
    problems->push_back(
        absl::StrCat("model.layer_norm_eps: is ", config.layer_norm_eps(), "; give a positive number or 0"));
  spec.rms_norm_eps = config.layer_norm_eps();
  const std::string name = config.has_hidden_act() ? config.hidden_act() : activation;
  spec.gelu = name == "gelu" ? Gelu::kErf : Gelu::kTanh;
  if (name != "gelu" && name != "gelu_new" && name != "gelu_fast" && name != "gelu_pytorch_tanh")
    problems->push_back(absl::StrCat("model.hidden_act: \"", name,
                                     "\" is not known; give \"gelu\", \"gelu_new\", \"gelu_fast\" or "
                                     "\"gelu_pytorch_tanh\""));
  if (spec.num_kv_heads != spec.num_heads)
    problems->push_back(absl::StrCat("model.num_key_value_heads: is ", spec.num_kv_heads, ", but every one of the ",
                                     spec.num_heads, " heads of this family has keys and values; remove it"));
  if (spec.head_dim * spec.num_heads != spec.hidden_size)
    problems->push_back(absl::StrCat("model.head_dim: ", spec.head_dim, " x ", spec.num_heads,
                                     " heads is not hidden_size ", spec.hidden_size, "; remove it"));
  if (config.has_quantization())
    problems->push_back(
        "model.quantization: this family's checkpoints store q, k and v as one matrix; it trains unquantized only");
  if (config.sliding_window() != 0 || !config.layer_types().empty() || !config.no_rope_layers().empty())
    problems->push_back(
        "model.sliding_window, layer_types, no_rope_layers: this family has no such layers; remove them");
  return spec;
}

}  // namespace trireme
