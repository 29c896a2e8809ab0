// A model as llama.cpp and its relatives read it.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_

#include <string>

#include "models/source/model_source.h"
#include "trainer/export/export.h"

namespace trireme {

inline constexpr char kGgufModelName[] = "model.gguf";

// kConfig when a GGUF file cannot hold such a model (all of whose fields are filled in) with such weights.
absl::Status CheckGgufModel(const ModelConfig& model, ExportConfig::Dtype dtype);

// Into `folder`, which exists and is empty: kGgufModelName with metadata, tokenizer, chat template and weights, opened
// again and compared. Other files may be left there.
absl::Status WriteGgufModel(const ModelSource& source, const ExportOptions& options, const std::string& folder);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_
