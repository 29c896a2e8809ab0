// trainer/export_source.h
// What can be exported: a run, a checkpoint, a Hugging Face directory or a GGUF file.
#ifndef TRIREME_TRAINER_EXPORT_SOURCE_H_
#define TRIREME_TRAINER_EXPORT_SOURCE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "models/family.h"
#include "models/formats/gguf.h"
#include "models/formats/hf_config.h"
#include "trainer/weight_source.h"

namespace trireme {

struct AdapterSource;  // trainer/adapter_source.h

struct ExportSource {
  std::string description;  // "checkpoint runs/a/checkpoints/step-00000100"
  ModelConfig model;        // resolved
  WeightSource weights;
  WeightTable table;      // of its family's checkpoints
  HfModelTypes hf_types;  // of its family
  HfTokenIds ids;         // where the source is a model directory
  std::string merged;     // what was merged onto what, for the record; "": nothing
  // A run that trains an adapter: the tensors above are its base model's, and model.quantization is how the run held
  // them, also where they are stored as they were. Null: none.
  std::shared_ptr<const AdapterSource> adapter;
  // Where tokenizer files may lie. The first folder with a tokenizer.json decides which tokenizer it is.
  std::vector<std::string> tokenizer_folders;
  // The GGUF file whose tokenizer is the model's; null unless no folder has one.
  std::shared_ptr<const GgufFile> tokenizer_gguf;
};

// The decoder that a configuration describes.
absl::StatusOr<DecoderSpec> SpecifyModel(const ModelConfig& model, const std::vector<ModelFamily>& families);

// The step folder that a run_dir (its newest checkpoint that is whole) or a step folder stands for; "" for what is
// neither.
absl::StatusOr<std::string> CheckpointOf(const std::string& source);

// SOURCE: a run_dir (its newest checkpoint that is whole), a checkpoint's step folder, a Hugging Face directory or
// ORG/NAME in the local cache, or a GGUF file. A checkpoint's weights are checked against their digests first.
// alive: called now and then meanwhile; may be empty.
absl::StatusOr<ExportSource> OpenExportSource(const std::string& source, const std::vector<ModelFamily>& families,
                                              const std::function<void()>& alive);

// What OpenExportSource() will make of a checkpoint of a run with this resolved config, before there is one: its
// weights and its adapter have made-up values. `spec` is the run's decoder, with its adapter.
absl::StatusOr<ExportSource> OpenFutureCheckpoint(const RunConfig& config, const DecoderSpec& spec,
                                                  const std::vector<ModelFamily>& families,
                                                  const std::function<void()>& alive);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_SOURCE_H_
