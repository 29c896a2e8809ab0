// What a model becomes in a file, and whether llama.cpp would take it for the same model.
#include <algorithm>
#include <cmath>
#include <functional>

#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_fields.h"

namespace trireme {
namespace {

using Field = google::protobuf::FieldDescriptor;

// LLAMA_FTYPE_*: what the matrices mostly are.
uint32_t FileType(GgufType type) {
  switch (type) {
    case GgufType::kF16:
      return 1;
    case GgufType::kQ4_0:
      return 2;
    case GgufType::kQ8_0:
      return 7;
    case GgufType::kBF16:
      return 32;
    default:
      TRIREME_CHECK(type == GgufType::kF32, "files of ", GgufTypeName(type), " are not written");
      return 0;
  }
}

template <typename... Why>
absl::Status Refuse(const Why&... why) {
  return Error(ExitCode::kConfig, "gguf: ", why..., "; export to Hugging Face's format instead");
}

bool Rescales(const ModelConfig& model, RopeScaling::Type type) {
  return model.has_rope_scaling() && model.rope_scaling().rope_type() == type;
}

bool HasAlpha(const ModelConfig& model) {
  return Rescales(model, RopeScaling::DYNAMIC) && model.rope_scaling().has_alpha();
}

// The base of the frequencies, with what alpha does to it where there is one.
double BaseOf(const ModelConfig& model) {
  if (!HasAlpha(model)) return model.rope_theta();
  const auto dims = static_cast<double>(HeadDimOf(model));
  return model.rope_theta() * std::pow(model.rope_scaling().alpha(), dims / (dims - 2));
}

// Tokens that a query of this layer sees; 0: all earlier ones.
int32_t WindowOf(const ModelConfig& model, int layer) {
  if (model.sliding_window() <= 0) return 0;
  const bool full = layer < model.layer_types_size() && model.layer_types(layer) != "sliding_attention";
  return full ? 0 : model.sliding_window();
}

bool PeriodicWindows(const ModelConfig& model, const GgufArchitecture& architecture) {
  for (int i = 0; i < model.num_hidden_layers(); ++i) {
    if ((WindowOf(model, i) > 0) != architecture.slides(i)) return false;
  }
  return true;
}

// Activations have several names.
std::string ActivationNamed(const std::string& name) {
  return name == "gelu_new" || name == "gelu_fast" ? "gelu_pytorch_tanh" : name == "swish" ? "silu" : name;
}

// A field of which many are left to others.
double Effective(const ModelConfig& model, const Field& field) {
  const std::string& name = field.name();
  if (name == "head_dim") return static_cast<double>(HeadDimOf(model));
  if (name == "num_key_value_heads") return static_cast<double>(KvHeadsOf(model));
  if (name == "attention_out_bias" && !model.has_attention_out_bias()) return model.attention_bias() ? 1 : 0;
  if (name == "moe_intermediate_size" && (model.num_experts() == 0 || !model.has_moe_intermediate_size()))
    return model.intermediate_size();
  if (name == "query_pre_attn_scalar" && !model.has_query_pre_attn_scalar())
    return static_cast<double>(HeadDimOf(model));
  if (name == "partial_rotary_factor") return static_cast<double>(RotatedDimsOf(model));
  if (name == "rope_theta") return BaseOf(model);
  return NumberOf(model, field);
}

std::string Shown(double value, const Field& field) {
  return IsTruth(field) ? (value != 0 ? "true" : "false") : absl::StrCat(value);
}

// Where the models differ in what fields mean; "": nowhere. told: by the file.
absl::Status CheckFields(const ModelConfig& model, const ModelConfig& told, const GgufArchitecture& architecture) {
  // Of no effect on what is computed, or compared below.
  static const char* const kElsewhere[] = {"from",           "config",
                                           "family",         "quantization",
                                           "sliding_window", "initializer_range",
                                           "rope_scaling",   "scaled_residual_init"};
  // Of no effect where the architecture does not have them.
  static const char* const kOfSome[] = {"rms_norm_eps",         "layer_norm_eps", "rope_theta",
                                        "rope_local_base_freq", "hidden_act",     "query_pre_attn_scalar",
                                        "partial_rotary_factor"};
  const auto among = [](const auto& names, const std::string& name) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  const google::protobuf::Reflection& fields = *told.GetReflection();
  for (int i = 0; i < ModelConfig::descriptor()->field_count(); ++i) {
    const Field& field = *ModelConfig::descriptor()->field(i);
    const std::string& name = field.name();
    const auto fixed = std::find_if(architecture.fixed.begin(), architecture.fixed.end(),
                                    [&](const GgufFixed& one) { return name == one.field; });
    const bool is_fixed = fixed != architecture.fixed.end();
    if (field.is_repeated() || (among(kElsewhere, name) && !is_fixed)) continue;
    const bool has = fields.HasField(told, &field);
    if (!has && among(kOfSome, name)) continue;
    // What the configuration leaves open is what its family has, which is this.
    if (is_fixed && !fields.HasField(model, &field)) continue;
    const char* means = is_fixed ? "\" always has " : "\" would have ";
    if (field.cpp_type() == Field::CPPTYPE_STRING) {
      const std::string ours = fields.GetString(model, &field), theirs = fields.GetString(told, &field);
      if (ActivationNamed(ours) != ActivationNamed(theirs))
        return Refuse("the architecture \"", architecture.name, means, name, " \"", theirs, "\", the model has \"",
                      ours, "\"");
      continue;
    }
    const double ours = Effective(model, field), theirs = Effective(told, field);
    if (static_cast<float>(ours) != static_cast<float>(theirs))
      return Refuse("the architecture \"", architecture.name, means, name, " ", Shown(theirs, field),
                    ", the model has ", Shown(ours, field));
  }
  if (model.mlp_only_layers_size() > 0)
    return Refuse("the architecture \"", architecture.name, "\" has experts in every layer; mlp_only_layers lists ",
                  model.mlp_only_layers_size(), " without");
  return absl::OkStatus();
}

// Where the architecture has no windows, one must be without effect.
absl::Status CheckNoWindow(const ModelConfig& model, const GgufArchitecture& architecture) {
  for (int i = 0; i < model.num_hidden_layers(); ++i) {
    const int32_t window = WindowOf(model, i);
    if (window > 0 && window < model.max_position_embeddings())
      return Refuse("the architecture \"", architecture.name, "\" has no sliding window, the model has one of ",
                    window);
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(const ModelConfig& model, const ModelConfig& told, const GgufArchitecture& architecture) {
  for (int i = 0; i < model.num_hidden_layers(); ++i) {
    if (architecture.window_period > 0 && WindowOf(model, i) != WindowOf(told, i))
      return Refuse("in the architecture \"", architecture.name, "\" all layers but each ", architecture.window_period,
                    "th have the sliding window; in the model, layer ", i, " differs");
    const bool rotates = i >= model.no_rope_layers_size() || model.no_rope_layers(i) != 0;
    if (model.no_rope_layers_size() > 0 && rotates != architecture.rotates_in(i))
      return Refuse("the architecture \"", architecture.name, "\" ",
                    architecture.rotates_in(i) ? "rotates" : "does not rotate", " in layer ", i, ", the model differs");
  }
  return absl::OkStatus();
}

absl::Status CheckRescaling(const ModelConfig& model, const ModelConfig& told, const GgufArchitecture& architecture) {
  if (!architecture.rotates || (HasAlpha(model) && architecture.alpha_in_base)) return absl::OkStatus();
  const auto same = [](double a, double b) { return static_cast<float>(a) == static_cast<float>(b); };
  const RopeScaling &ours = model.rope_scaling(), &theirs = told.rope_scaling();
  bool equal = model.has_rope_scaling() == told.has_rope_scaling() && ours.rope_type() == theirs.rope_type();
  if (equal && Rescales(model, RopeScaling::LINEAR)) equal = same(ours.factor(), theirs.factor());
  if (equal && Rescales(model, RopeScaling::YARN)) {
    equal = same(ours.factor(), theirs.factor()) && same(YarnAttention(ours), YarnAttention(theirs)) &&
            same(ours.beta_fast(), theirs.beta_fast()) && same(ours.beta_slow(), theirs.beta_slow()) &&
            ours.original_max_position_embeddings() == theirs.original_max_position_embeddings();
    if (equal && ours.truncate() != theirs.truncate())
      return Refuse("the architecture \"", architecture.name, "\" has yarn with truncate ",
                    theirs.truncate() ? "true" : "false", ", the model has it otherwise");
    if (architecture.latent) equal = equal && same(ours.mscale_all_dim(), theirs.mscale_all_dim());
  }
  if (equal && Rescales(model, RopeScaling::LONGROPE)) {
    const int32_t positions = model.max_position_embeddings();
    equal = ours.original_max_position_embeddings() == theirs.original_max_position_embeddings() &&
            same(LongRopeAttention(ours, positions), LongRopeAttention(theirs, positions));
  }
  if (equal) return absl::OkStatus();
  // A factor of 1 rescales nothing.
  if (Rescales(model, RopeScaling::LINEAR) && ours.factor() == 1 && !told.has_rope_scaling()) return absl::OkStatus();
  return Refuse("the architecture \"", architecture.name, "\" has no rope_scaling ",
                RopeScaling::Type_Name(ours.rope_type()), " of this kind");
}

// The keys of rotation.
void AddRotation(const ModelConfig& model, const GgufArchitecture& architecture,
                 const std::function<void(const char*, GgufValue)>& add) {
  const auto real = [](double value) { return GgufValue(static_cast<float>(value)); };
  const int64_t rotated = architecture.partial_rotation ? RotatedDimsOf(model) : HeadDimOf(model);
  add("rope.dimension_count", static_cast<uint32_t>(rotated));
  add("rope.freq_base", real(BaseOf(model)));
  if (architecture.local_rope) add("rope.freq_base_swa", real(model.rope_local_base_freq()));
  const bool linear = Rescales(model, RopeScaling::LINEAR) && model.rope_scaling().factor() != 1;
  if (linear) {
    add("rope.scaling.type", std::string("linear"));
    add("rope.scaling.factor", real(model.rope_scaling().factor()));
  } else if (Rescales(model, RopeScaling::YARN)) {
    const RopeScaling& scaling = model.rope_scaling();
    add("rope.scaling.type", std::string("yarn"));
    add("rope.scaling.factor", real(scaling.factor()));
    add("rope.scaling.original_context_length", static_cast<uint32_t>(scaling.original_max_position_embeddings()));
    if (scaling.has_attention_factor()) add("rope.scaling.yarn_attn_factor", real(scaling.attention_factor()));
    if (scaling.has_beta_fast()) add("rope.scaling.yarn_beta_fast", real(scaling.beta_fast()));
    if (scaling.has_beta_slow()) add("rope.scaling.yarn_beta_slow", real(scaling.beta_slow()));
    if (architecture.latent && scaling.has_mscale_all_dim())
      add("rope.scaling.yarn_log_multiplier", real(0.1 * scaling.mscale_all_dim()));
  } else if (architecture.says_unscaled || (architecture.alpha_in_base && HasAlpha(model))) {
    add("rope.scaling.type", std::string("none"));
  }
  if (!architecture.long_factors) return;
  const bool longer = Rescales(model, RopeScaling::LONGROPE);
  add("rope.scaling.original_context_length",
      static_cast<uint32_t>(longer ? model.rope_scaling().original_max_position_embeddings()
                                   : model.max_position_embeddings()));
  if (longer)
    add("rope.scaling.attn_factor", real(LongRopeAttention(model.rope_scaling(), model.max_position_embeddings())));
}

}  // namespace

absl::StatusOr<GgufMetadata> GgufModelMetadata(const ModelConfig& model, const std::string& name, GgufType type) {
  const GgufArchitecture* found = GgufArchitectureOf(model);
  if (found == nullptr) return Refuse("the family \"", model.family(), "\" has no architecture here for such a model");
  const GgufArchitecture& architecture = *found;
  const auto u32 = [](int64_t number) { return static_cast<uint32_t>(number); };
  GgufMetadata metadata = {{"general.architecture", std::string(architecture.name)},
                           {"general.type", std::string("model")},
                           {"general.name", name},
                           {"general.file_type", FileType(type)},
                           {"general.quantization_version", u32(2)}};
  const auto add = [&](const char* key, GgufValue value) {
    metadata.emplace_back(absl::StrCat(architecture.name, ".", key), std::move(value));
  };
  add("block_count", u32(model.num_hidden_layers()));
  add("context_length", u32(model.max_position_embeddings()));
  add("embedding_length", u32(model.hidden_size()));
  add("feed_forward_length", u32(model.intermediate_size()));
  add("vocab_size", u32(model.vocab_size()));
  add("attention.head_count", u32(model.num_attention_heads()));
  const int64_t latent = model.kv_lora_rank(), turning = HeadDimOf(model);
  add("attention.head_count_kv", u32(architecture.latent ? 1 : KvHeadsOf(model)));
  add("attention.key_length", u32(architecture.latent ? latent + turning : turning));
  add("attention.value_length", u32(architecture.latent ? latent : turning));
  if (architecture.latent) {
    add("attention.key_length_mla", u32(model.qk_nope_head_dim() + turning));
    add("attention.value_length_mla", u32(model.v_head_dim()));
  }
  for (const GgufKey& key : architecture.keys) {
    const Field& field = ModelField(key.field);
    const double value = Effective(model, field);
    if (key.left_out && value == key.if_absent) continue;
    if (IsTruth(field)) {
      add(key.key, value != 0);
    } else if (IsReal(field)) {
      add(key.key, static_cast<float>(value));
    } else {
      add(key.key, u32(static_cast<int64_t>(value)));
    }
  }
  for (const auto& [key, value] : architecture.constants) add(key, value);
  if (architecture.rotates) AddRotation(model, architecture, add);
  if (architecture.window_period > 0) {
    add("attention.sliding_window", u32(model.sliding_window()));
    std::vector<bool> slides;
    for (int i = 0; i < model.num_hidden_layers(); ++i) slides.push_back(WindowOf(model, i) > 0);
    if (architecture.lists_windows == GgufWindowList::kAlways ||
        (architecture.lists_windows == GgufWindowList::kUnlessPeriodic && !PeriodicWindows(model, architecture)))
      add("attention.sliding_window_pattern", GgufArray(slides));
  }
  return metadata;
}

absl::Status CheckGgufMeans(const GgufHeader& header, const ModelConfig& model) {
  const GgufArchitecture& architecture = *GgufArchitectureOf(model);
  const bool tied = model.tie_word_embeddings();
  if (architecture.head == GgufHead::kNever && !tied)
    return Refuse("the architecture \"", architecture.name, "\" has no head apart from the embedding");
  if (architecture.head == GgufHead::kAlways && tied)
    return Refuse("the architecture \"", architecture.name, "\" needs a head apart from the embedding");
  if (architecture.even_heads && HeadDimOf(model) * model.num_attention_heads() != model.hidden_size())
    return Refuse("the architecture \"", architecture.name, "\" has heads that share hidden_size ", model.hidden_size(),
                  "; head_dim ", HeadDimOf(model), " of ", model.num_attention_heads(), " heads does not");
  if (architecture.even_groups && KvHeadsOf(model) != model.num_attention_heads())
    return Refuse("the architecture \"", architecture.name,
                  "\" has as many key-value heads as heads; num_key_value_heads is ", KvHeadsOf(model));
  if (model.n_group() > 1 && model.topk_group() >= model.n_group())
    return Refuse("llama.cpp wants fewer chosen groups of experts than there are; topk_group is ", model.topk_group(),
                  " of n_group ", model.n_group());
  const auto fixes_windows = [](const GgufFixed& fixed) { return std::string(fixed.field) == "sliding_window"; };
  if (architecture.window_period == 0 &&
      std::none_of(architecture.fixed.begin(), architecture.fixed.end(), fixes_windows))
    RETURN_IF_ERROR(CheckNoWindow(model, architecture));
  const GgufFactors factors = GgufPositionFactors(model, HeadDimOf(model));
  const GgufVectorReader read = [&](const GgufTensor& tensor) -> absl::StatusOr<std::vector<float>> {
    for (const auto& [name, values] : factors) {
      if (name == tensor.name) return values;
    }
    TRIREME_CHECK(false, "no position factors ", tensor.name);
  };
  const bool llama3 = Rescales(model, RopeScaling::LLAMA3);
  if ((llama3 && !architecture.rope_factors) ||
      (Rescales(model, RopeScaling::LONGROPE) && !architecture.long_factors) ||
      (Rescales(model, RopeScaling::DYNAMIC) && !(HasAlpha(model) && architecture.alpha_in_base)))
    return Refuse("the architecture \"", architecture.name, "\" has no rope_scaling ",
                  RopeScaling::Type_Name(model.rope_scaling().rope_type()));
  const absl::StatusOr<GgufModel> told = ReadGgufModel(header, read, llama3 ? &model.rope_scaling() : nullptr);
  if (!told.ok()) return Refuse("llama.cpp would not take the model: ", told.status().message());
  if (told->architecture != &architecture)
    return Refuse("llama.cpp would take the file for one of family \"", told->config.family(), "\"");
  RETURN_IF_ERROR(CheckFields(model, told->config, architecture));
  RETURN_IF_ERROR(CheckLayers(model, told->config, architecture));
  return CheckRescaling(model, told->config, architecture);
}

}  // namespace trireme
