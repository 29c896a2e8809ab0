#include "models/formats/gguf/gguf_fields.h"

#include <algorithm>

#include "launch/base/status.h"

namespace trireme {

using Field = google::protobuf::FieldDescriptor;

const Field& ModelField(const std::string& name) {
  const Field* field = ModelConfig::descriptor()->FindFieldByName(name);
  TRIREME_CHECK(field != nullptr && !field->is_repeated(), "ModelConfig has no number called ", name);
  return *field;
}

bool IsReal(const Field& field) { return field.cpp_type() == Field::CPPTYPE_DOUBLE; }
bool IsTruth(const Field& field) { return field.cpp_type() == Field::CPPTYPE_BOOL; }

double NumberOf(const ModelConfig& model, const Field& field) {
  const google::protobuf::Reflection& fields = *model.GetReflection();
  if (IsReal(field)) return fields.GetDouble(model, &field);
  if (IsTruth(field)) return fields.GetBool(model, &field) ? 1 : 0;
  return fields.GetInt32(model, &field);
}

void SetNumber(double value, const Field& field, ModelConfig* model) {
  const google::protobuf::Reflection& fields = *model->GetReflection();
  if (IsReal(field)) {
    fields.SetDouble(model, &field, value);
  } else if (IsTruth(field)) {
    fields.SetBool(model, &field, value != 0);
  } else {
    fields.SetInt32(model, &field, static_cast<int32_t>(value));
  }
}

void SetField(const HfValue& value, const Field& field, ModelConfig* model) {
  if (const auto* text = std::get_if<const char*>(&value)) {
    model->GetReflection()->SetString(model, &field, *text);
  } else {
    SetNumber(std::holds_alternative<bool>(value) ? std::get<bool>(value) : std::get<double>(value), field, model);
  }
}

int64_t HeadDimOf(const ModelConfig& model) {
  return model.has_head_dim() ? model.head_dim() : model.hidden_size() / std::max(1, model.num_attention_heads());
}

int64_t KvHeadsOf(const ModelConfig& model) {
  return model.has_num_key_value_heads() ? model.num_key_value_heads() : model.num_attention_heads();
}

int64_t RotatedDimsOf(const ModelConfig& model) {
  // As Transformers rounds it.
  return static_cast<int64_t>(static_cast<double>(HeadDimOf(model)) * model.partial_rotary_factor());
}

}  // namespace trireme
