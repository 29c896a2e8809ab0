#include "models/parts/draft.h"

#include <algorithm>
#include <cmath>

#include "models/spec/parameters.h"

namespace trireme {
namespace {

constexpr int64_t kMaxLayers = 100'000;

void CheckNumbers(const ModelConfig& c, std::vector<std::string>* problems) {
  const auto positive_number = [&](const char* field, double value, bool zero_too) {
    CheckPositive(field, value, zero_too, problems);
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
    if (s.has_alpha()) positive_number("rope_scaling.alpha", s.alpha(), /*zero_too=*/false);
    positive_number("rope_scaling.mscale", s.mscale(), /*zero_too=*/true);
    positive_number("rope_scaling.mscale_all_dim", s.mscale_all_dim(), /*zero_too=*/true);
    for (const double factor : s.short_factor()) positive_number("rope_scaling.short_factor", factor, false);
    for (const double factor : s.long_factor()) positive_number("rope_scaling.long_factor", factor, false);
    if (!(s.high_freq_factor() > s.low_freq_factor())) {
      problems->push_back(absl::StrCat("model.rope_scaling.high_freq_factor: ", s.high_freq_factor(),
                                       " must exceed low_freq_factor ", s.low_freq_factor()));
    }
  }
}

RotaryScaling RotaryScalingOf(const RopeScaling& s, int64_t max_positions) {
  RotaryScaling scaling;
  switch (s.rope_type()) {
    case RopeScaling::LLAMA3:
      scaling.kind = RotaryScaling::kLlama3;
      break;
    case RopeScaling::YARN:
      scaling.kind = RotaryScaling::kYarn;
      break;
    case RopeScaling::LONGROPE:
      scaling.kind = RotaryScaling::kLongRope;
      break;
    case RopeScaling::DYNAMIC:
      scaling.kind = RotaryScaling::kDynamic;
      break;
    case RopeScaling::LINEAR:
      scaling.kind = RotaryScaling::kLinear;
  }
  scaling.short_factor.assign(s.short_factor().begin(), s.short_factor().end());
  scaling.long_factor.assign(s.long_factor().begin(), s.long_factor().end());
  if (s.has_alpha()) scaling.alpha = s.alpha();
  scaling.truncate = s.truncate();
  scaling.mscale = s.mscale();
  scaling.mscale_all_dim = s.mscale_all_dim();
  scaling.factor = s.rope_type() != RopeScaling::LONGROPE || s.has_factor()
                       ? s.factor()
                       : static_cast<double>(max_positions) / static_cast<double>(s.original_max_position_embeddings());
  scaling.low_freq_factor = s.low_freq_factor();
  scaling.high_freq_factor = s.high_freq_factor();
  scaling.original_max_position_embeddings = s.original_max_position_embeddings();
  scaling.beta_fast = s.beta_fast();
  scaling.beta_slow = s.beta_slow();
  if (s.has_attention_factor()) scaling.attention_factor = s.attention_factor();
  return scaling;
}

// Which layers have the window, and which rotate.
void DraftPattern(const ModelConfig& c, DecoderDraft* draft, std::vector<std::string>* problems) {
  const DecoderSpec* spec = &draft->spec;
  draft->pattern.assign(static_cast<size_t>(spec->num_layers), {c.sliding_window()});
  const auto right_size = [&](const char* field, int size) {
    if (size == 0 || size == spec->num_layers) return true;
    problems->push_back(
        absl::StrCat("model.", field, ": has ", size, " entries for ", spec->num_layers, " layers; give one for each"));
    return false;
  };
  if (!right_size("layer_types", c.layer_types_size()) || !right_size("no_rope_layers", c.no_rope_layers_size()))
    return;
  for (int i = 0; i < spec->num_layers; ++i) {
    LayerPattern& layer = draft->pattern[static_cast<size_t>(i)];
    if (!c.layer_types().empty()) {
      const std::string& type = c.layer_types(i);
      if (type != "sliding_attention" && type != "full_attention") {
        problems->push_back(absl::StrCat("model.layer_types: \"", type,
                                         "\" is not known; give \"sliding_attention\" or \"full_attention\""));
      } else if (type == "full_attention") {
        layer.window = 0;
      } else if (c.sliding_window() < 1) {
        problems->push_back("model.layer_types: has \"sliding_attention\", but model.sliding_window is 0; set it");
      }
    }
    if (!c.no_rope_layers().empty()) layer.rope = c.no_rope_layers(i) != 0;
  }
}

void Quantize(const QuantizationConfig& config, DecoderSpec* spec) {
  if (!config.has_method()) return;
  QuantizationFormat format;
  format.method = config.method() == QuantizationConfig::INT8    ? QuantizationFormat::kInt8
                  : config.method() == QuantizationConfig::MXFP4 ? QuantizationFormat::kMxfp4
                                                                 : QuantizationFormat::kNf4;
  format.nested = config.double_quantization();
  spec->quantization = format;
  spec->quantized_layers = config.method() != QuantizationConfig::MXFP4;
  spec->quantized_experts = config.experts();
  spec->unquantized.assign(config.skip_modules().begin(), config.skip_modules().end());
}

}  // namespace

DecoderDraft DraftDecoder(const ModelConfig& c, std::vector<std::string>* problems) {
  DecoderDraft draft;
  DecoderSpec& spec = draft.spec;
  AttentionSettings& attention = draft.attention;
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
  attention.heads = positive("num_attention_heads", c.has_num_attention_heads(), c.num_attention_heads());
  attention.kv_heads =
      c.has_num_key_value_heads() ? positive("num_key_value_heads", true, c.num_key_value_heads()) : attention.heads;
  draft.feed_forward.width = positive("intermediate_size", c.has_intermediate_size(), c.intermediate_size());
  spec.vocab_size = positive("vocab_size", c.has_vocab_size(), c.vocab_size());
  spec.max_positions =
      positive("max_position_embeddings", c.has_max_position_embeddings(), c.max_position_embeddings());
  if (c.has_head_dim()) {
    attention.head_dim = positive("head_dim", true, c.head_dim());
  } else {
    if (c.hidden_size() > 0 && spec.hidden_size % attention.heads != 0) {
      problems->push_back(absl::StrCat("model.num_attention_heads: ", attention.heads, " does not divide hidden_size ",
                                       spec.hidden_size, "; change one of them or set model.head_dim"));
    }
    attention.head_dim = std::max<int64_t>(1, spec.hidden_size / attention.heads);
  }
  // A size that is missing has been named already; what follows from it need not be.
  if (attention.head_dim % 2 != 0 && (c.has_head_dim() || c.hidden_size() > 0)) {
    problems->push_back(
        absl::StrCat("model.head_dim: ", attention.head_dim, " is odd; rotary positions turn pairs, make it even"));
  }
  if (attention.heads % attention.kv_heads != 0) {
    problems->push_back(absl::StrCat("model.num_key_value_heads: ", attention.kv_heads,
                                     " does not divide num_attention_heads ", attention.heads));
  }
  if (c.has_rope_scaling()) {
    draft.rotation.scaling = RotaryScalingOf(c.rope_scaling(), spec.max_positions);
    if (!c.rope_scaling().has_rope_type())
      problems->push_back(
          "model.rope_scaling.rope_type: not set; give LLAMA3, LINEAR, YARN, LONGROPE or DYNAMIC, or remove "
          "rope_scaling");
  }
  CheckNumbers(c, problems);
  if (c.sliding_window() < 0)
    problems->push_back(absl::StrCat("model.sliding_window: is ", c.sliding_window(), "; give 0 for none"));
  draft.rotation.theta = c.rope_theta();
  draft.rotation.dims = attention.head_dim;
  draft.rotation.max_positions = spec.max_positions;
  draft.block.norm.eps = spec.head.norm.eps = c.rms_norm_eps();
  spec.tied_embeddings = c.tie_word_embeddings();
  spec.initializer_range = c.initializer_range();
  spec.scaled_residual_init = c.scaled_residual_init();
  attention.qkv_bias = c.attention_bias();
  attention.output_bias = c.has_attention_out_bias() ? c.attention_out_bias() : c.attention_bias();
  draft.feed_forward.bias = c.mlp_bias();
  DraftPattern(c, &draft, problems);
  draft.quantization = c.quantization();
  if (c.has_quantization() && !c.quantization().has_method())
    problems->push_back("model.quantization.method: not set; give NF4, INT8 or MXFP4, or remove quantization");
  return draft;
}

void DecoderDraft::UseLocalRotation(double theta) {
  local_rotation = rotation;
  local_rotation.theta = theta;
  local_rotation.scaling.reset();
  for (LayerPattern& layer : pattern) layer.local = layer.window > 0;
}

void DecoderDraft::EachNorm(const std::function<void(NormSpec*)>& change) {
  change(&block.norm);
  change(&spec.head.norm);
}

DecoderSpec DecoderDraft::Build(std::vector<std::string>* problems) const {
  DecoderSpec built = spec;
  if (rotation.second_beyond() > 0) {
    const auto pairs = static_cast<size_t>(rotation.dims / 2);
    const auto right_size = [&](const char* field, std::vector<double> RotaryScaling::*factors) {
      if (((*rotation.scaling).*factors).size() == pairs) return true;
      problems->push_back(absl::StrCat("model.rope_scaling.", field, ": has ", ((*rotation.scaling).*factors).size(),
                                       " entries; ", rotation.dims, " dimensions of a head turn, give ", pairs));
      return false;
    };
    // Nothing can be built of too few.
    if (!right_size("short_factor", &RotaryScaling::short_factor) ||
        !right_size("long_factor", &RotaryScaling::long_factor)) {
      DecoderDraft plain = *this;
      plain.rotation.scaling.reset();
      plain.local_rotation.scaling.reset();
      return plain.Build(problems);
    }
  }
  const std::shared_ptr<const BlockPart> shared_feed_forward = MakeFeedForward(feed_forward);
  // Layers that do not differ have one part.
  std::vector<std::pair<LayerPattern, std::shared_ptr<const BlockPart>>> made;
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const LayerPattern& one = pattern[static_cast<size_t>(i)];
    LayerSpec layer = block;
    const auto found = std::find_if(made.begin(), made.end(), [&](const auto& known) {
      return known.first.window == one.window && known.first.rope == one.rope && known.first.local == one.local;
    });
    if (make_mixer) {
      layer.mixer = make_mixer(i);
    } else if (found != made.end() && !vary) {
      layer.mixer = found->second;
    } else {
      AttentionSettings own = attention;
      own.window = one.window;
      if (one.rope) own.rotation = one.local ? local_rotation : rotation;
      if (vary) vary(i, &own);
      layer.mixer = MakeAttention(own);
      made.emplace_back(one, layer.mixer);
    }
    layer.feed_forward = make_feed_forward ? make_feed_forward(i) : shared_feed_forward;
    built.layers.push_back(std::move(layer));
  }
  Quantize(quantization, &built);
  return built;
}

void UseLayerNorm(const ModelConfig& config, bool bias, DecoderDraft* draft, std::vector<std::string>* problems) {
  CheckPositive("layer_norm_eps", config.layer_norm_eps(), /*zero_too=*/true, problems);
  draft->EachNorm([&](NormSpec* norm) {
    norm->kind = NormSpec::kLayer;
    norm->bias = bias;
    norm->eps = config.layer_norm_eps();
  });
}

Activation ActivationOf(const ModelConfig& config, const std::string& by_default, std::vector<std::string>* problems) {
  const std::string name = config.has_hidden_act() ? config.hidden_act() : by_default;
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu2") return Activation::kSquaredRelu;
  problems->push_back(absl::StrCat("model.hidden_act: \"", name,
                                   "\" is not known; give \"gelu\", \"gelu_new\", \"gelu_fast\", "
                                   "\"gelu_pytorch_tanh\", \"relu\", \"relu2\" or \"silu\""));
  return Activation::kSilu;
}

void RotatePartly(const ModelConfig& config, double by_default, DecoderDraft* draft,
                  std::vector<std::string>* problems) {
  const double share = config.has_partial_rotary_factor() ? config.partial_rotary_factor() : by_default;
  const int64_t head_dim = draft->attention.head_dim;
  if (!(share > 0 && share <= 1)) {
    problems->push_back(absl::StrCat("model.partial_rotary_factor: is ", share, "; give a share above 0, at most 1"));
    return;
  }
  const auto dims = static_cast<int64_t>(static_cast<double>(head_dim) * share);  // as Transformers rounds it
  if (dims < 2 || dims % 2 != 0) {
    problems->push_back(absl::StrCat("model.partial_rotary_factor: ", share, " of head_dim ", head_dim, " are ", dims,
                                     " dimensions; positions turn pairs, give a share that makes them even"));
    return;
  }
  draft->rotation.dims = dims;
}

void CheckPositive(const std::string& field, double value, bool zero_too, std::vector<std::string>* problems) {
  if (!(value > 0 || (zero_too && value == 0)) || !std::isfinite(value))
    problems->push_back(
        absl::StrCat("model.", field, ": is ", value, "; give a positive number", zero_too ? " or 0" : ""));
}

}  // namespace trireme
