// A model as llama.cpp and its relatives read it.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_

#include <string>
#include <vector>

#include "models/source/model_source.h"
#include "models/weights/gguf_layout.h"
#include "trainer/export/export.h"

namespace trireme {

inline constexpr char kGgufModelName[] = "model.gguf";

// What a file would hold, without tokenizer and contents of tensors.
struct GgufPlan {
  ModelConfig model;  // all fields filled in
  GgufMetadata metadata;
  GgufLayout layout;
  GgufFactors factors;
  std::vector<GgufTensor> tensors;
};

// kConfig when a GGUF file cannot hold such a model, or llama.cpp would take it for another.
absl::StatusOr<GgufPlan> PlanGguf(const ModelConfig& model, const std::vector<ModelFamily>& families,
                                  const std::string& name, GgufType type);
// Of a model with such weights.
absl::Status CheckGgufModel(const ModelConfig& model, const std::vector<ModelFamily>& families,
                            ExportConfig::Dtype dtype);

// Into `folder`, which exists and is empty: kGgufModelName with metadata, tokenizer, chat template and weights, opened
// again and compared. Other files may be left there.
absl::Status WriteGgufModel(const ModelSource& source, const ExportOptions& options,
                            const std::vector<ModelFamily>& families, const std::string& folder);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_GGUF_H_
