#include <algorithm>
#include <cmath>

#include "models/spec/family.h"
#include "models/spec/parameters.h"

namespace trireme {
namespace {

constexpr int64_t kMaxLayers = 100'000;

void CheckNumbers(const ModelConfig& c, std::vector<std::string>* problems) {
  const auto positive_number = [&](const char* field, double value, bool zero_too) {
    if (!(value > 0 || (zero_too && value == 0)) || !std::isfinite(value))
      problems->push_back(
          absl::StrCat("model.", field, ": is ", value, "; give a positive number", zero_too ? " or 0" : ""));
  };
  positive_number("rope_theta", c.rope_theta(), /*zero_too=*/false);
  positive_number("rms_norm_eps", c.rms_norm_eps(), /*zero_too=*/true);
  positive_number("initializer_range", c.initializer_range(), /*zero_too=*/true);
  if (c.has_rope_scaling()) {
    const RopeScaling& s = c.rope_scaling();
    positive_number("rope_scaling.factor", s.factor(), /*zero_too=*/false);
    positive_number("rope_scaling.low_freq_factor", s.low_freq_factor(), /*zero_too=*/false);
    positive_number("rope_scaling.original_max_position_embeddings", s.original_max_position_embeddings(), false);
    positive_number("rope_scaling.beta_fast", s.beta_fast(), /*zero_too=*/false);
    positive_number("rope_scaling.beta_slow", s.beta_slow(), /*zero_too=*/false);
    if (s.has_attention_factor())
      positive_number("rope_scaling.attention_factor", s.attention_factor(), /*zero_too=*/false);
    if (!(s.high_freq_factor() > s.low_freq_factor())) {
      problems->push_back(absl::StrCat("model.rope_scaling.high_freq_factor: ", s.high_freq_factor(),
                                       " must exceed low_freq_factor ", s.low_freq_factor()));
    }
  }
}

// Which layers have the window, and which rotate.
RotaryScaling RotaryScalingOf(const RopeScaling& s) {
  RotaryScaling scaling;
  scaling.kind = s.rope_type() == RopeScaling::LLAMA3 ? RotaryScaling::kLlama3
                 : s.rope_type() == RopeScaling::YARN ? RotaryScaling::kYarn
                                                      : RotaryScaling::kLinear;
  scaling.factor = s.factor();
  scaling.low_freq_factor = s.low_freq_factor();
  scaling.high_freq_factor = s.high_freq_factor();
  scaling.original_max_position_embeddings = s.original_max_position_embeddings();
  scaling.beta_fast = s.beta_fast();
  scaling.beta_slow = s.beta_slow();
  if (s.has_attention_factor()) scaling.attention_factor = s.attention_factor();
  return scaling;
}

void SpecifyLayers(const ModelConfig& c, DecoderSpec* spec, std::vector<std::string>* problems) {
  if (c.layer_types().empty() && c.no_rope_layers().empty()) return;
  const auto right_size = [&](const char* field, int size) {
    if (size == 0 || size == spec->num_layers) return true;
    problems->push_back(
        absl::StrCat("model.", field, ": has ", size, " entries for ", spec->num_layers, " layers; give one for each"));
    return false;
  };
  if (!right_size("layer_types", c.layer_types_size()) || !right_size("no_rope_layers", c.no_rope_layers_size()))
    return;
  for (int i = 0; i < spec->num_layers; ++i) {
    LayerPattern layer = {spec->sliding_window};
    if (!c.layer_types().empty()) {
      const std::string& type = c.layer_types(i);
      if (type != "sliding_attention" && type != "full_attention") {
        problems->push_back(absl::StrCat("model.layer_types: \"", type,
                                         "\" is not known; give \"sliding_attention\" or \"full_attention\""));
      } else if (type == "full_attention") {
        layer.window = 0;
      } else if (spec->sliding_window < 1) {
        problems->push_back("model.layer_types: has \"sliding_attention\", but model.sliding_window is 0; set it");
      }
    }
    if (!c.no_rope_layers().empty()) layer.rope = c.no_rope_layers(i) != 0;
    spec->pattern.push_back(layer);
  }
}

void SpecifyQuantization(const ModelConfig& c, DecoderSpec* spec, std::vector<std::string>* problems) {
  if (!c.has_quantization()) return;
  if (!c.quantization().has_method()) {
    problems->push_back("model.quantization.method: not set; give NF4 or INT8, or remove quantization");
    return;
  }
  QuantizationFormat format;
  format.method =
      c.quantization().method() == QuantizationConfig::INT8 ? QuantizationFormat::kInt8 : QuantizationFormat::kNf4;
  format.nested = c.quantization().double_quantization();
  spec->quantization = format;
  spec->unquantized.assign(c.quantization().skip_modules().begin(), c.quantization().skip_modules().end());
  CheckUnquantized(*spec, problems);
}

}  // namespace

DecoderSpec SpecifyDecoder(const ModelConfig& c, std::vector<std::string>* problems) {
  DecoderSpec spec;
  const auto positive = [&](const char* field, bool set, int64_t value) {
    if (!set || value < 1)
      problems->push_back(absl::StrCat("model.", field, ": ", set ? absl::StrCat("is ", value) : "not set",
                                       "; give a positive number"));
    return value < 1 ? 1 : value;
  };
  spec.num_layers = positive("num_hidden_layers", c.has_num_hidden_layers(), c.num_hidden_layers());
  if (spec.num_layers > kMaxLayers) {
    problems->push_back(absl::StrCat("model.num_hidden_layers: is ", spec.num_layers, "; at most ", kMaxLayers));
    spec.num_layers = 1;
  }
  spec.hidden_size = positive("hidden_size", c.has_hidden_size(), c.hidden_size());
  spec.num_heads = positive("num_attention_heads", c.has_num_attention_heads(), c.num_attention_heads());
  spec.num_kv_heads =
      c.has_num_key_value_heads() ? positive("num_key_value_heads", true, c.num_key_value_heads()) : spec.num_heads;
  spec.intermediate_size = positive("intermediate_size", c.has_intermediate_size(), c.intermediate_size());
  spec.vocab_size = positive("vocab_size", c.has_vocab_size(), c.vocab_size());
  spec.max_positions =
      positive("max_position_embeddings", c.has_max_position_embeddings(), c.max_position_embeddings());
  if (c.has_head_dim()) {
    spec.head_dim = positive("head_dim", true, c.head_dim());
  } else {
    if (c.hidden_size() > 0 && spec.hidden_size % spec.num_heads != 0) {
      problems->push_back(absl::StrCat("model.num_attention_heads: ", spec.num_heads, " does not divide hidden_size ",
                                       spec.hidden_size, "; change one of them or set model.head_dim"));
    }
    spec.head_dim = std::max<int64_t>(1, spec.hidden_size / spec.num_heads);
  }
  // A size that is missing has been named already; what follows from it need not be.
  if (spec.head_dim % 2 != 0 && (c.has_head_dim() || c.hidden_size() > 0)) {
    problems->push_back(
        absl::StrCat("model.head_dim: ", spec.head_dim, " is odd; rotary positions turn pairs, make it even"));
  }
  if (spec.num_heads % spec.num_kv_heads != 0) {
    problems->push_back(absl::StrCat("model.num_key_value_heads: ", spec.num_kv_heads,
                                     " does not divide num_attention_heads ", spec.num_heads));
  }
  if (c.has_rope_scaling()) {
    spec.rope_scaling = RotaryScalingOf(c.rope_scaling());
    if (!c.rope_scaling().has_rope_type())
      problems->push_back("model.rope_scaling.rope_type: not set; give LLAMA3, LINEAR or YARN, or remove rope_scaling");
  }
  CheckNumbers(c, problems);
  if (c.sliding_window() < 0)
    problems->push_back(absl::StrCat("model.sliding_window: is ", c.sliding_window(), "; give 0 for none"));
  spec.rope_theta = c.rope_theta();
  spec.rms_norm_eps = c.rms_norm_eps();
  spec.tied_embeddings = c.tie_word_embeddings();
  spec.initializer_range = c.initializer_range();
  spec.scaled_residual_init = c.scaled_residual_init();
  spec.sliding_window = c.sliding_window();
  spec.qkv_bias = spec.output_bias = c.attention_bias();
  SpecifyLayers(c, &spec, problems);
  SpecifyQuantization(c, &spec, problems);
  return spec;
}

}  // namespace trireme
