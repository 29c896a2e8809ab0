// models/formats/gguf/gguf_fields.h
// Fields of ModelConfig by name, for keys of files that are fields.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_FIELDS_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_FIELDS_H_

#include <google/protobuf/descriptor.h>

#include <string>

#include "configs/run_config.pb.h"
#include "models/formats/hf/hf_model_type.h"

namespace trireme {

// A field that there is; all functions below take singular ones that are whole or real numbers or truth.
const google::protobuf::FieldDescriptor& ModelField(const std::string& name);
bool IsReal(const google::protobuf::FieldDescriptor& field);
bool IsTruth(const google::protobuf::FieldDescriptor& field);

// The value, or its default; truth is 0 or 1.
double NumberOf(const ModelConfig& model, const google::protobuf::FieldDescriptor& field);
void SetNumber(double value, const google::protobuf::FieldDescriptor& field, ModelConfig* model);
void SetField(const HfValue& value, const google::protobuf::FieldDescriptor& field, ModelConfig* model);  // or a text

// What configurations leave to other fields.
int64_t HeadDimOf(const ModelConfig& model);
int64_t KvHeadsOf(const ModelConfig& model);
int64_t RotatedDimsOf(const ModelConfig& model);  // of a head

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_FIELDS_H_
