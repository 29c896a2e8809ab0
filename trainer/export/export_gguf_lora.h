// trainer/export/export_gguf_lora.h
// An adapter as llama.cpp's --lora reads it.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_GGUF_LORA_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_GGUF_LORA_H_

#include <string>

#include "models/source/model_source.h"
#include "models/weights/adapter_source.h"

namespace trireme {

// kConfig: what llama.cpp's adapters cannot hold (DoRA, modules that were trained whole; merge them), or a family
// without GGUF.
absl::Status CheckGgufLora(const ModelConfig& model, const std::vector<ModelFamily>& families,
                           const AdapterConfig& adapter);

// Into `folder`, which exists: kGgufModelName, the adapter of `source` for its base model, in float32. Follows
// llama.cpp's convert_lora_to_gguf.py. Errors: CheckGgufLora's.
absl::Status WriteGgufLora(const ModelSource& source, const std::vector<ModelFamily>& families, const std::string& name,
                           const std::string& folder, const std::function<void()>& alive);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_GGUF_LORA_H_
