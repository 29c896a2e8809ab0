#include "models/formats/hf/hf_config.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/base/file.h"
#include "models/formats/hf/bitsandbytes.h"
#include "models/formats/hf/hf_model_type.h"
#include "models/formats/hf/packed.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;
constexpr int32_t kMaxLayers = 100'000;   // more are refused elsewhere; no file makes us allocate more
constexpr int32_t kMaxWindowLayers = 28;  // Transformers' default

// Says nothing: null, false, empty.
bool IsBlank(const Json& value) {
  return value.is_null() || value == false || value == "" || ((value.is_array() || value.is_object()) && value.empty());
}

// Expected in every file, without influence on what is computed.
constexpr const char* kBookkeeping[] = {"architectures", "transformers_version", "use_cache", "_name_or_path"};

// Settings of generation and of the Python classes.
bool WithoutEffect(const std::string& key) {
  static const std::set<std::string> keys = {
      "attention_probs_dropout_prob",  // this and the next ones: no class of these model types reads them
      "hidden_dropout_prob",
      "max_sequence_length",
      "n_special",
      "output_past",
      "predict_special_tokens",
      "sliding_window_size",
      "attn_implementation",
      "bad_words_ids",
      "begin_suppress_tokens",
      "cache_implementation",
      "chunk_size_feed_forward",
      "classifier_dropout",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "finetuning_task",
      "gradient_checkpointing",
      "id2label",
      "is_decoder",
      "is_llama_config",
      "label2id",
      "length_penalty",
      "max_length",
      "min_length",
      "n_ctx",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_labels",
      "num_return_sequences",
      "output_attentions",
      "output_hidden_states",
      "output_scores",
      "prefix",
      "pretraining_tp",  // Cuts products into pieces: the same function up to round-off.
      "problem_type",
      "repetition_penalty",
      "return_dict",
      "return_dict_in_generate",
      "suppress_tokens",
      "task_specific_params",
      "temperature",
      "tf_legacy_loss",
      "tokenizer_class",
      "top_k",
      "top_p",
      "torchscript",
      "transformers.js_config",
      "typical_p",
      "unsloth_fixed",
      "unsloth_version",
      "use_bfloat16",
  };
  // Attributes that Transformers keeps for itself, and ids for text, not for the model.
  return keys.count(key) > 0 || absl::StartsWith(key, "_") || absl::StartsWith(key, "summary_") ||
         absl::EndsWith(key, "_token_id");
}

}  // namespace

void ReadHfSizes(JsonReader& reader, const HfModelType& type, ModelConfig* model) {
  const auto integer = [&](const char* field, void (ModelConfig::*set)(int32_t)) {
    const HfKey* own = KeyOfField(type, field);
    if (const std::optional<int32_t> value = reader.Integer(own != nullptr ? own->key : field)) (model->*set)(*value);
  };
  integer("num_hidden_layers", &ModelConfig::set_num_hidden_layers);
  integer("hidden_size", &ModelConfig::set_hidden_size);
  integer("num_attention_heads", &ModelConfig::set_num_attention_heads);
  integer("intermediate_size", &ModelConfig::set_intermediate_size);
  integer("vocab_size", &ModelConfig::set_vocab_size);
  integer("head_dim", &ModelConfig::set_head_dim);
  integer("num_key_value_heads", &ModelConfig::set_num_key_value_heads);
  if (!model->has_num_key_value_heads()) {
    if (type.num_key_value_heads > 0 && !reader.Has("num_key_value_heads")) {
      model->set_num_key_value_heads(type.num_key_value_heads);
    } else if (model->has_num_attention_heads()) {
      model->set_num_key_value_heads(model->num_attention_heads());
    }
  }
  if (!model->has_head_dim() && type.head_dim > 0) {
    model->set_head_dim(type.head_dim);
  } else if (!model->has_head_dim() && model->hidden_size() > 0 && model->num_attention_heads() > 0) {
    model->set_head_dim(model->hidden_size() / model->num_attention_heads());
  }
  integer("max_position_embeddings", &ModelConfig::set_max_position_embeddings);
  if (!model->has_max_position_embeddings()) model->set_max_position_embeddings(type.max_position_embeddings);
}

namespace {

constexpr char kSliding[] = "sliding_attention", kFull[] = "full_attention";

// The list of a number of layers, or what the rule makes of it.
std::vector<std::string> ReadLayerTypes(JsonReader& reader, int32_t layers,
                                        const std::function<bool(int32_t)>& slides) {
  std::vector<std::string> types;
  if (const Json* list = reader.Find("layer_types"); list != nullptr) {
    for (const Json& type : *list) types.push_back(JsonTextOr(type, DumpJson(type)));
    if (!list->is_array()) reader.Bad("layer_types", *list, "is not a list");
    return types;
  }
  for (int32_t i = 0; i < std::min(layers, kMaxLayers); ++i) types.push_back(slides(i) ? kSliding : kFull);
  return types;
}

// Sets sliding_window, and layer_types where not all layers have it.
void ReadWindows(JsonReader& reader, const HfModelType& type, ModelConfig* model) {
  const std::optional<int32_t> value = reader.Integer("sliding_window");
  int32_t window = value.has_value() || reader.Has("sliding_window") ? value.value_or(0) : type.sliding_window;
  model->set_sliding_window(0);
  if (type.windows == HfWindows::kOff) {
    reader.Require("use_sliding_window", false, "is not supported");
    for (const char* key : {"max_window_layers", "layer_types"}) reader.Find(key);
    return;
  }
  if (type.windows == HfWindows::kNone) {
    if (window != 0)
      reader.Bad("sliding_window", window,
                 absl::StrCat("has no effect on model_type ", type.model_type, "; remove it"));
    return;
  }
  const int32_t layers = model->num_hidden_layers();
  std::vector<std::string> types(static_cast<size_t>(std::clamp(layers, 0, kMaxLayers)), kSliding);
  if (type.windows == HfWindows::kSwitched) {
    const bool used = reader.Bool("use_sliding_window").value_or(false);
    if (!used) window = 0;
    const int32_t first = reader.Integer("max_window_layers").value_or(kMaxWindowLayers);
    types = ReadLayerTypes(reader, layers, [&](int32_t i) {
      if (window == 0) return false;
      return type.no_rope ? model->no_rope_layers(i) == 0 : i >= first;
    });
  } else if (type.windows == HfWindows::kPattern) {
    // Where layers are listed, Transformers does not heed the period, which may be a pattern of letters then.
    std::optional<int32_t> own;
    if (type.own_period && reader.Find("sliding_window_pattern") != nullptr && !reader.Has("layer_types"))
      own = reader.Integer("sliding_window_pattern");
    const int32_t period = type.window_period == 0 ? 0 : std::max(1, own.value_or(type.window_period));
    types = ReadLayerTypes(reader, layers, [&](int32_t i) {
      return (window != 0 || type.gemma) && (period == 0 || (i + 1) % period != 0);
    });
  }
  const auto sliding = std::count(types.begin(), types.end(), kSliding);
  // Gemma's classes want a window even where no layer has it.
  const bool unused = sliding == 0 && type.windows != HfWindows::kPattern;
  if (unused) window = 0;
  model->set_sliding_window(window);
  if (unused || sliding == static_cast<int64_t>(types.size())) return;
  for (const std::string& name : types) model->add_layer_types(name);
}

void ReadNoRopeLayers(JsonReader& reader, ModelConfig* model) {
  const int32_t interval = std::max(1, reader.Integer("no_rope_layer_interval").value_or(4));
  if (const Json* list = reader.Find("no_rope_layers"); list != nullptr && list->is_array()) {
    for (const Json& value : *list) model->add_no_rope_layers(value.is_number() && value != 0 ? 1 : 0);
    if (list->size() != static_cast<size_t>(model->num_hidden_layers()))
      reader.Bad("no_rope_layers", *list, "has not one entry for each of num_hidden_layers");
    return;
  }
  for (int32_t i = 0; i < std::min(model->num_hidden_layers(), kMaxLayers); ++i)
    model->add_no_rope_layers((i + 1) % interval != 0 ? 1 : 0);
}

void ReadGemma(JsonReader& reader, const HfModelType& type, ModelConfig* model) {
  const auto softcap = [&](const char* key, double by_default) {
    return reader.Has(key) ? reader.Number(key).value_or(0) : by_default;
  };
  model->set_query_pre_attn_scalar(reader.Number("query_pre_attn_scalar").value_or(256));
  model->set_attn_logit_softcapping(0);
  if (type.attention_softcap > 0) {
    model->set_attn_logit_softcapping(softcap("attn_logit_softcapping", type.attention_softcap));
  } else {
    reader.Require("attn_logit_softcapping", 0.0,
                   absl::StrCat("has no effect on model_type ", type.model_type, "; remove it"));
  }
  model->set_final_logit_softcapping(softcap("final_logit_softcapping", type.logit_softcap));
  reader.Require("use_bidirectional_attention", false, "is not supported");
  reader.Require("hidden_activation", "gelu_pytorch_tanh", "is not supported; \"gelu_pytorch_tanh\" is");
}

HfTokenIds ReadIds(JsonReader& reader) {
  HfTokenIds ids;
  // Older configs write -1 for "none".
  const auto id = [&](const char* key) {
    const std::optional<int32_t> value = reader.Integer(key);
    return value.has_value() && *value >= 0 ? std::optional<int64_t>(*value) : std::nullopt;
  };
  ids.bos = id("bos_token_id");
  ids.pad = id("pad_token_id");
  const Json* eos = reader.Find("eos_token_id");
  if (eos != nullptr && eos->is_array()) {
    for (const Json& value : *eos) {
      if (const std::optional<int64_t> one = JsonInteger(value)) {
        if (*one >= 0) ids.eos.push_back(*one);
      } else {
        reader.Bad("eos_token_id", *eos, "is not a list of ids");
      }
    }
  } else if (eos != nullptr) {
    if (const std::optional<int64_t> value = id("eos_token_id")) ids.eos.push_back(*value);
  }
  return ids;
}

void CheckArchitecture(JsonReader& reader, const HfModelType& type) {
  if (const Json* names = reader.Find("architectures"); names != nullptr && *names != Json::array({type.architecture}))
    reader.Bad("architectures", *names, absl::StrCat("is not [\"", type.architecture, "\"]"));
  reader.Require("is_encoder_decoder", false, "is not supported");
  reader.Require("add_cross_attention", false, "is not supported");
  reader.Require("tie_encoder_decoder", false, "is not supported");
}

// The keys of Llama and of those that resemble it.
void ReadLlamaConfig(JsonReader& reader, const HfModelType& type, ModelConfig* model,
                     std::vector<std::string>* problems) {
  const auto own = [&](const char* field) { return KeyOfField(type, field) != nullptr; };
  const auto require = [&](const char* key, const Json& only, const std::string& why) {
    const auto is = [&](const char* other) { return key == std::string(other); };
    const bool listed = std::any_of(type.only.begin(), type.only.end(), [&](const HfOnly& one) { return is(one.key); });
    if (!own(key) && !listed && std::none_of(type.elsewhere.begin(), type.elsewhere.end(), is))
      reader.Require(key, only, why);
  };
  const char* activation = type.gemma ? "gelu_pytorch_tanh" : "silu";
  require("hidden_act", activation, absl::StrCat("is not supported; \"", activation, "\" is"));
  if (!type.attention_bias)
    require("attention_bias", false, absl::StrCat("is not supported for model_type ", type.model_type));
  require("mlp_bias", false, absl::StrCat("is not supported for model_type ", type.model_type));
  if (type.dropouts.empty()) require("attention_dropout", 0.0, "is not supported; there is no dropout");
  if (type.partial_rotary == 0)
    reader.Require("partial_rotary_factor", 1.0, "is not supported; every dimension of a head is turned");
  reader.Require("rope_interleaved", false, "is not supported; halves are turned, not neighbours");
  ReadHfSizes(reader, type, model);
  if (type.no_rope) ReadNoRopeLayers(reader, model);
  ReadWindows(reader, type, model);
  ReadHfRotary(reader, type, model, problems);
  if (type.attention_bias) {
    if (const std::optional<bool> bias = reader.Bool("attention_bias")) model->set_attention_bias(*bias);
  }
  if (type.gemma) ReadGemma(reader, type, model);
  if (type.rms_norm_eps > 0) model->set_rms_norm_eps(reader.Number("rms_norm_eps").value_or(type.rms_norm_eps));
}

// Sets the field that a key is for, where the file has it.
void ReadKey(JsonReader& reader, const HfKey& key, ModelConfig* model) {
  const auto* field = ModelConfig::descriptor()->FindFieldByName(key.field != nullptr ? key.field : key.key);
  const auto* reflection = model->GetReflection();
  if (field == nullptr || reflection->HasField(*model, field)) return;  // a size, that was read with the others
  switch (field->cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE:
      if (const auto number = reader.Number(key.key)) reflection->SetDouble(model, field, *number);
      return;
    case google::protobuf::FieldDescriptor::CPPTYPE_INT32:
      if (const auto number = reader.Integer(key.key)) reflection->SetInt32(model, field, *number);
      return;
    case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
      if (const auto truth = reader.Bool(key.key)) reflection->SetBool(model, field, *truth);
      return;
    default:
      if (const std::string text = reader.Text(key.key); !text.empty()) reflection->SetString(model, field, text);
  }
}

// What the record of the type lists.
void ReadListed(JsonReader& reader, const HfModelType& type, HfConfig* config) {
  for (const HfKey& key : type.keys) ReadKey(reader, key, &config->model);
  FillDefaults(type, &config->model);
  for (const HfOnly& only : type.only) reader.Require(only.key, ToJson(only.value), only.why);
  for (const char* key : type.dropouts) {
    const std::optional<double> dropout = reader.Number(key);
    if (dropout.has_value() && *dropout != 0) config->ignored.push_back(absl::StrCat(key, " (there is no dropout)"));
  }
  if (type.read_more != nullptr) type.read_more(reader, config);
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(const std::string& text, const std::string& origin, const HfModelTypes& types) {
  ASSIGN_OR_RETURN(const Json object, ParseJsonObject(text, origin));
  std::vector<std::string> problems;
  HfConfig config;
  JsonReader reader(object, "", &problems);
  const std::string name = reader.Text("model_type");
  const HfModelType* type = FindHfModelType(types, name);
  if (type == nullptr) {
    return Error(ExitCode::kData, origin,
                 ": model_type: ", name.empty() ? "missing" : absl::StrCat("\"", name, "\" is not supported"), "; ",
                 NamesOf(types), " are");
  }
  CheckArchitecture(reader, *type);
  if (const Json* quantization = reader.Find("quantization_config"); quantization != nullptr) {
    if (quantization->is_object() && IsPackedConfig(*quantization, &problems)) {
      config.ignored.push_back("quantization_config (its matrices become numbers of 16 or 32 bits)");
    } else if (quantization->is_object()) {
      ReadBnbConfig(*quantization, config.model.mutable_quantization(), &problems);
    } else {
      reader.Bad("quantization_config", *quantization, "is no object");
    }
  }
  if (type->family != std::string("llama")) config.model.set_family(type->family);
  if (type->read != nullptr) {
    type->read(reader, *type, &config, &problems);
  } else {
    ReadLlamaConfig(reader, *type, &config.model, &problems);
    ReadListed(reader, *type, &config);
  }
  // bitsandbytes leaves experts as they are.
  if (config.model.has_quantization() && config.model.has_num_experts())
    config.model.mutable_quantization()->set_experts(false);
  config.model.set_tie_word_embeddings(reader.Bool("tie_word_embeddings").value_or(type->tied));
  if (!config.model.has_initializer_range())
    config.model.set_initializer_range(reader.Number("initializer_range").value_or(type->initializer_range));
  config.ids = ReadIds(reader);
  config.dtype = reader.Text("dtype");
  const std::string old_dtype = reader.Text("torch_dtype");
  if (config.dtype.empty()) config.dtype = old_dtype;
  for (const char* key : kBookkeeping) reader.Find(key);
  for (const std::string& key : reader.Rest()) {
    if (IsBlank(object[key]) || WithoutEffect(key)) {
      config.ignored.push_back(key);
    } else {
      reader.Bad(key, object[key], "is not understood and could change numbers");
    }
  }
  if (problems.empty()) return config;
  return Error(ExitCode::kData, origin, ": cannot be followed exactly:\n  ", absl::StrJoin(problems, "\n  "),
               "\nremove from a copy of the file what is sure not to matter");
}

absl::StatusOr<HfConfig> ReadHfConfig(const std::string& path, const HfModelTypes& types) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  return ParseHfConfig(text, path, types);
}

absl::StatusOr<HfTokenIds> ReadHfTokenIds(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const Json object, ParseJsonObject(text, path));
  std::vector<std::string> problems;
  JsonReader reader(object, "", &problems);
  const HfTokenIds ids = ReadIds(reader);
  if (problems.empty()) return ids;
  return Error(ExitCode::kData, path, ": ", absl::StrJoin(problems, "\n  "));
}

}  // namespace trireme
