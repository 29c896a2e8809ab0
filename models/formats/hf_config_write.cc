#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <nlohmann/json.hpp>

#include "models/formats/hf_config.h"

namespace trireme {

using Json = nlohmann::json;

std::string WriteHfConfig(const ModelConfig& model, const HfTokenIds& ids, const std::string& dtype) {
  const bool mistral = model.sliding_window() > 0;
  nlohmann::ordered_json rope = {{"rope_theta", model.rope_theta()}, {"rope_type", "default"}};
  nlohmann::ordered_json scaling;
  if (model.has_rope_scaling()) {
    const RopeScaling& s = model.rope_scaling();
    scaling = {{"rope_type", "llama3"},
               {"factor", s.factor()},
               {"low_freq_factor", s.low_freq_factor()},
               {"high_freq_factor", s.high_freq_factor()},
               {"original_max_position_embeddings", s.original_max_position_embeddings()}};
    rope.update(scaling);
  }
  const auto id = [](const std::optional<int64_t>& value) { return value.has_value() ? Json(*value) : Json(); };
  const Json eos = ids.eos.empty() ? Json() : ids.eos.size() == 1 ? Json(ids.eos[0]) : Json(ids.eos);
  nlohmann::ordered_json json = {
      {"architectures", Json::array({mistral ? "MistralForCausalLM" : "LlamaForCausalLM"})},
      {"attention_dropout", 0.0},
      {"bos_token_id", id(ids.bos)},
      {"dtype", dtype},
      {"eos_token_id", eos},
      {"head_dim", model.has_head_dim() ? model.head_dim() : model.hidden_size() / model.num_attention_heads()},
      {"hidden_act", "silu"},
      {"hidden_size", model.hidden_size()},
      {"initializer_range", model.initializer_range()},
      {"intermediate_size", model.intermediate_size()},
      {"max_position_embeddings", model.max_position_embeddings()},
      {"model_type", mistral ? "mistral" : "llama"},
      {"num_attention_heads", model.num_attention_heads()},
      {"num_hidden_layers", model.num_hidden_layers()},
      {"num_key_value_heads",
       model.has_num_key_value_heads() ? model.num_key_value_heads() : model.num_attention_heads()},
      {"pad_token_id", id(ids.pad)},
      {"rms_norm_eps", model.rms_norm_eps()},
      {"rope_parameters", rope},
      {"rope_scaling", scaling},
      {"rope_theta", model.rope_theta()},
      {"tie_word_embeddings", model.tie_word_embeddings()},
      {"torch_dtype", dtype},
      {"use_cache", true},
      {"vocab_size", model.vocab_size()},
  };
  if (mistral) {
    json["sliding_window"] = model.sliding_window();
  } else {
    json["attention_bias"] = false;
    json["mlp_bias"] = false;
  }
  return json.dump(2) + "\n";
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
    if (reflection->HasField(*model, field) && !SameField(*model, file, field)) {
      problems->push_back(absl::StrCat("model.", field->name(), ": is ", Show(*model, field), ", but ", origin,
                                       " says ", Show(file, field), "; remove it, or change a copy of that file"));
    }
  }
  // The only field by whose absence a file says something.
  if (model->has_rope_scaling() && !file.has_rope_scaling())
    problems->push_back(absl::StrCat("model.rope_scaling: ", origin, " has none; remove it"));
  model->MergeFrom(file);
}

}  // namespace trireme
