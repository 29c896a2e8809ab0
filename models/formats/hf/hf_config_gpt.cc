#include <nlohmann/json.hpp>

#include "models/formats/hf/hf_config.h"
#include "models/formats/hf/hf_model_type.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr double kLayerNormEps = 1e-5;  // Transformers' default
constexpr int32_t kWidening = 4;        // of GPT-2's MLP, unless n_inner says otherwise
constexpr char kGpt2Activation[] = "gelu_new", kGptNeoxActivation[] = "gelu";

std::string TextOr(JsonReader& reader, const char* key, const char* by_default) {
  const std::string text = reader.Text(key);
  return text.empty() ? by_default : text;
}

int32_t Inner(const ModelConfig& model) {
  return model.hidden_size() > 0 && model.hidden_size() <= INT32_MAX / kWidening ? kWidening * model.hidden_size() : 0;
}

}  // namespace

void ReadGpt2Config(JsonReader& reader, const HfModelType& type, HfConfig* config, std::vector<std::string>*) {
  ModelConfig& model = config->model;
  const auto integer = [&](const char* key, void (ModelConfig::*set)(int32_t)) {
    if (const std::optional<int32_t> value = reader.Integer(key)) (model.*set)(*value);
  };
  integer("n_layer", &ModelConfig::set_num_hidden_layers);
  integer("n_embd", &ModelConfig::set_hidden_size);
  integer("n_head", &ModelConfig::set_num_attention_heads);
  integer("vocab_size", &ModelConfig::set_vocab_size);
  model.set_max_position_embeddings(reader.Integer("n_positions").value_or(type.max_position_embeddings));
  const std::optional<int32_t> inner = reader.Integer("n_inner");
  if (inner.has_value() || Inner(model) > 0) model.set_intermediate_size(inner.value_or(Inner(model)));
  model.set_hidden_act(TextOr(reader, "activation_function", kGpt2Activation));
  model.set_layer_norm_eps(reader.Number("layer_norm_epsilon").value_or(kLayerNormEps));
  reader.Require("scale_attn_weights", true, "is not supported; scores are divided by the root of the head's width");
  model.set_scale_attn_by_inverse_layer_idx(reader.Bool("scale_attn_by_inverse_layer_idx").value_or(false));
  reader.Require("reorder_and_upcast_attn", false, "is not supported");
  // Published files have it; it is no property of the weights.
  for (const char* key : {"attn_pdrop", "embd_pdrop", "resid_pdrop"}) {
    const std::optional<double> dropout = reader.Number(key);
    if (dropout.has_value() && *dropout != 0) config->ignored.push_back(absl::StrCat(key, " (there is no dropout)"));
  }
}

void WriteGpt2Config(const ModelConfig& model, const HfModelType&, nlohmann::ordered_json* json) {
  const bool usual = model.intermediate_size() == Inner(model);
  json->update({
      {"activation_function", model.has_hidden_act() ? model.hidden_act() : kGpt2Activation},
      {"attn_pdrop", 0.0},
      {"embd_pdrop", 0.0},
      {"layer_norm_epsilon", model.layer_norm_eps()},
      {"n_embd", model.hidden_size()},
      {"n_head", model.num_attention_heads()},
      {"n_inner", usual ? Json() : Json(model.intermediate_size())},
      {"n_layer", model.num_hidden_layers()},
      {"n_positions", model.max_position_embeddings()},
      {"resid_pdrop", 0.0},
      {"scale_attn_by_inverse_layer_idx", model.scale_attn_by_inverse_layer_idx()},
  });
}

void ReadGptNeoxConfig(JsonReader& reader, const HfModelType& type, HfConfig* config,
                       std::vector<std::string>* problems) {
  ModelConfig& model = config->model;
  ReadHfSizes(reader, type, &model);
  ReadHfRotary(reader, type, &model, problems);
  model.set_hidden_act(TextOr(reader, "hidden_act", kGptNeoxActivation));
  model.set_layer_norm_eps(reader.Number("layer_norm_eps").value_or(kLayerNormEps));
  model.set_use_parallel_residual(reader.Bool("use_parallel_residual").value_or(true));
  model.set_attention_bias(reader.Bool("attention_bias").value_or(true));
  reader.Require("attention_dropout", 0.0, "is not supported; there is no dropout");
  reader.Require("hidden_dropout", 0.0, "is not supported; there is no dropout");
}

void WriteGptNeoxConfig(const ModelConfig& model, const HfModelType& type, nlohmann::ordered_json* json) {
  json->update({
      {"attention_bias", !model.has_attention_bias() || model.attention_bias()},
      {"attention_dropout", 0.0},
      {"hidden_act", model.has_hidden_act() ? model.hidden_act() : kGptNeoxActivation},
      {"hidden_dropout", 0.0},
      {"hidden_size", model.hidden_size()},
      {"intermediate_size", model.intermediate_size()},
      {"layer_norm_eps", model.layer_norm_eps()},
      {"max_position_embeddings", model.max_position_embeddings()},
      {"num_attention_heads", model.num_attention_heads()},
      {"num_hidden_layers", model.num_hidden_layers()},
      {"use_parallel_residual", model.use_parallel_residual()},
  });
  WriteHfRotary(model, type, json);
}

}  // namespace trireme
