#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/base/json.h"
#include "models/formats/hf/bitsandbytes.h"
#include "models/formats/hf/hf_config.h"
#include "models/formats/hf/hf_model_type.h"

namespace trireme {

using Json = nlohmann::json;

namespace {

nlohmann::ordered_json Scaling(const RopeScaling& s) {
  nlohmann::ordered_json json = {{"factor", s.factor()}};
  if (s.rope_type() == RopeScaling::LINEAR) {
    json["rope_type"] = "linear";
    return json;
  }
  if (s.rope_type() == RopeScaling::DYNAMIC) {
    json["rope_type"] = "dynamic";
    if (s.has_alpha()) json["alpha"] = s.alpha();
    return json;
  }
  json["original_max_position_embeddings"] = s.original_max_position_embeddings();
  if (s.rope_type() == RopeScaling::LONGROPE) {
    if (!s.has_factor()) json.erase("factor");
    json["rope_type"] = "longrope";
    json["short_factor"] = std::vector<double>(s.short_factor().begin(), s.short_factor().end());
    json["long_factor"] = std::vector<double>(s.long_factor().begin(), s.long_factor().end());
    if (s.has_attention_factor()) json["attention_factor"] = s.attention_factor();
    return json;
  }
  if (s.rope_type() == RopeScaling::LLAMA3) {
    json["rope_type"] = "llama3";
    json["low_freq_factor"] = s.low_freq_factor();
    json["high_freq_factor"] = s.high_freq_factor();
  } else {
    json["rope_type"] = "yarn";
    if (s.has_beta_fast()) json["beta_fast"] = s.beta_fast();
    if (s.has_beta_slow()) json["beta_slow"] = s.beta_slow();
    if (s.has_attention_factor()) json["attention_factor"] = s.attention_factor();
    if (s.has_truncate()) json["truncate"] = s.truncate();
    if (s.has_mscale()) json["mscale"] = s.mscale();
    if (s.has_mscale_all_dim()) json["mscale_all_dim"] = s.mscale_all_dim();
  }
  return json;
}

}  // namespace

void WriteHfRotary(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) {
  nlohmann::ordered_json rope = {{"rope_theta", model.rope_theta()}, {"rope_type", "default"}}, scaling;
  if (model.has_rope_scaling()) {
    scaling = Scaling(model.rope_scaling());
    rope.update(scaling);
  }
  (*json)[type.neox_rotary ? "rotary_emb_base" : "rope_theta"] = model.rope_theta();
  if (type.partial_rotary > 0) {
    const double share = model.has_partial_rotary_factor() ? model.partial_rotary_factor() : type.partial_rotary;
    rope["partial_rotary_factor"] = (*json)[type.neox_rotary ? "rotary_pct" : "partial_rotary_factor"] = share;
  }
  (*json)["rope_scaling"] = scaling;
  if (type.original_context > 0) {
    const bool rescaled = model.has_rope_scaling() && model.rope_scaling().has_original_max_position_embeddings();
    (*json)["original_max_position_embeddings"] =
        rescaled ? model.rope_scaling().original_max_position_embeddings() : type.original_context;
  }
  if (type.local_rope_theta > 0) {
    const double local = model.has_rope_local_base_freq() ? model.rope_local_base_freq() : type.local_rope_theta;
    if (type.gemma) (*json)["rope_local_base_freq"] = local;
    rope = {{"full_attention", rope}, {"sliding_attention", {{"rope_theta", local}, {"rope_type", "default"}}}};
  }
  (*json)["rope_parameters"] = rope;
}

namespace {

void WriteWindows(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) {
  if (type.windows == HfWindows::kNone) return;
  if (type.windows == HfWindows::kOff) {
    (*json)["use_sliding_window"] = false;
    return;
  }
  (*json)["sliding_window"] = model.sliding_window() > 0 ? Json(model.sliding_window()) : Json();
  if (type.windows == HfWindows::kAll) return;
  Json types = Json::array();
  for (int i = 0; i < model.num_hidden_layers(); ++i) {
    types.push_back(!model.layer_types().empty() ? model.layer_types(i)
                    : model.sliding_window() > 0 ? "sliding_attention"
                                                 : "full_attention");
  }
  (*json)["layer_types"] = types;
  if (type.windows != HfWindows::kSwitched) return;
  (*json)["use_sliding_window"] = model.sliding_window() > 0;
  if (type.no_rope) return;
  const auto first = std::find(types.begin(), types.end(), "sliding_attention");
  (*json)["max_window_layers"] = first - types.begin();
}

// The value of a field as config.json has it; null: it is not set.
Json FieldValue(const ModelConfig& model, const std::string& name) {
  const auto* field = ModelConfig::descriptor()->FindFieldByName(name);
  const auto* reflection = model.GetReflection();
  if (field == nullptr || !reflection->HasField(model, field)) return nullptr;
  switch (field->cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->GetDouble(model, field);
    case google::protobuf::FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(model, field);
    case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(model, field);
    default:
      return reflection->GetString(model, field);
  }
}

// What the record of the type lists.
void WriteListed(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) {
  ModelConfig filled = model;
  FillDefaults(type, &filled);
  for (const HfKey& key : type.keys) (*json)[key.key] = FieldValue(filled, key.field != nullptr ? key.field : key.key);
  for (const HfOnly& only : type.only) (*json)[only.key] = ToJson(only.value);
  for (const char* key : type.dropouts) (*json)[key] = 0.0;
  if (type.write_more != nullptr) type.write_more(filled, json);
}

void WriteLlamaConfig(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) {
  const auto size = [&](const char* field, int32_t value) {
    if (KeyOfField(type, field) == nullptr) (*json)[field] = value;
  };
  const bool elsewhere =
      std::find(type.elsewhere.begin(), type.elsewhere.end(), std::string("attention_dropout")) != type.elsewhere.end();
  if (type.dropouts.empty() && !elsewhere) (*json)["attention_dropout"] = 0.0;
  size("hidden_size", model.hidden_size());
  size("intermediate_size", model.intermediate_size());
  size("max_position_embeddings", model.max_position_embeddings());
  size("num_attention_heads", model.num_attention_heads());
  size("num_hidden_layers", model.num_hidden_layers());
  size("num_key_value_heads",
       model.has_num_key_value_heads() ? model.num_key_value_heads() : model.num_attention_heads());
  if (type.rms_norm_eps > 0) (*json)["rms_norm_eps"] = model.rms_norm_eps();
  const int32_t usual_head_dim = model.hidden_size() / model.num_attention_heads();
  const int32_t head_dim = model.has_head_dim() ? model.head_dim() : usual_head_dim;
  if (type.own_head_dim || head_dim != usual_head_dim) (*json)["head_dim"] = head_dim;
  WriteHfRotary(model, type, json);
  WriteWindows(model, type, json);
  if (type.attention_bias) (*json)["attention_bias"] = model.attention_bias();
  if (type.gemma) {
    const auto softcap = [](double value) { return value > 0 ? Json(value) : Json(); };
    (*json)["attn_logit_softcapping"] = softcap(model.attn_logit_softcapping());
    (*json)["final_logit_softcapping"] = softcap(model.final_logit_softcapping());
    (*json)["hidden_activation"] = "gelu_pytorch_tanh";
    // Integers, where they are: Transformers demands one.
    const double scalar =
        model.has_query_pre_attn_scalar() ? model.query_pre_attn_scalar() : static_cast<double>(head_dim);
    (*json)["query_pre_attn_scalar"] = scalar == std::floor(scalar) ? Json(static_cast<int64_t>(scalar)) : Json(scalar);
  } else if (KeyOfField(type, "hidden_act") == nullptr) {
    (*json)["hidden_act"] = "silu";
  }
  if (type.no_rope) {
    Json layers = Json::array();
    for (int i = 0; i < model.num_hidden_layers(); ++i)
      layers.push_back(model.no_rope_layers().empty() ? ((i + 1) % 4 != 0 ? 1 : 0) : model.no_rope_layers(i));
    (*json)["no_rope_layers"] = layers;
  }
  WriteListed(model, type, json);
}

}  // namespace

std::string WriteHfConfig(const ModelConfig& model, const HfModelType& type, const HfTokenIds& ids,
                          const std::string& dtype) {
  const auto id = [](const std::optional<int64_t>& value) { return value.has_value() ? Json(*value) : Json(); };
  const Json eos = ids.eos.empty() ? Json() : ids.eos.size() == 1 ? Json(ids.eos[0]) : Json(ids.eos);
  nlohmann::ordered_json json = {
      {"architectures", Json::array({type.architecture})},
      {"bos_token_id", id(ids.bos)},
      {"dtype", dtype},
      {"eos_token_id", eos},
      {"initializer_range", model.initializer_range()},
      {"model_type", type.model_type},
      {"pad_token_id", id(ids.pad)},
      {"tie_word_embeddings", model.tie_word_embeddings()},
      {"torch_dtype", dtype},
      {"use_cache", true},
      {"vocab_size", model.vocab_size()},
  };
  if (type.write != nullptr) {
    type.write(model, type, &json);
  } else {
    WriteLlamaConfig(model, type, &json);
  }
  if (model.has_quantization()) json["quantization_config"] = WriteBnbConfig(model.quantization(), dtype);
  return DumpJson(json, 2) + "\n";
}

namespace {

// A field as text, for messages.
std::string Show(const ModelConfig& model, const google::protobuf::FieldDescriptor* field) {
  std::string text;
  google::protobuf::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  printer.PrintFieldValueToString(model, field, -1, &text);
  return field->message_type() == nullptr ? text : absl::StrCat("{ ", text, "}");
}

bool SameField(const ModelConfig& a, const ModelConfig& b, const google::protobuf::FieldDescriptor* field) {
  google::protobuf::util::MessageDifferencer difference;
  difference.set_message_field_comparison(google::protobuf::util::MessageDifferencer::EQUIVALENT);
  return difference.CompareWithFields(a, b, {field}, {field});
}

}  // namespace

void MergeHfConfig(const ModelConfig& file, const std::string& origin, ModelConfig* model,
                   std::vector<std::string>* problems) {
  const auto* reflection = file.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(file, &fields);
  for (const auto* field : fields) {
    const bool set =
        field->is_repeated() ? reflection->FieldSize(*model, field) > 0 : reflection->HasField(*model, field);
    if (set && !SameField(*model, file, field)) {
      problems->push_back(absl::StrCat("model.", field->name(), ": is ", Show(*model, field), ", but ", origin,
                                       " says ", Show(file, field), "; remove it, or change a copy of that file"));
    }
  }
  // The only field by whose absence a file says something.
  if (model->has_rope_scaling() && !file.has_rope_scaling())
    problems->push_back(absl::StrCat("model.rope_scaling: ", origin, " has none; remove it"));
  if (!file.has_family() && model->has_family() && model->family() != "llama")
    problems->push_back(absl::StrCat("model.family: is \"", model->family(), "\", but ", origin,
                                     " is of the family \"llama\"; remove it, or change a copy of that file"));
  // Merging appends to lists.
  for (const auto* field : fields) {
    if (field->is_repeated()) reflection->ClearField(model, field);
  }
  model->MergeFrom(file);
}

}  // namespace trireme
