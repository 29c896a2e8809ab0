// A model as Transformers would save it.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_HF_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_HF_H_

#include <string>

#include "models/source/model_source.h"
#include "trainer/export/export.h"

namespace trireme {

// Into `folder`, which exists and is empty: config.json, model.safetensors (or several files and their index), the
// tokenizer's files, generation_config.json; reads everything back and compares.
absl::Status WriteHfDirectory(const ModelSource& source, const ExportOptions& options, const std::string& folder);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_HF_H_
