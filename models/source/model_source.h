// models/source/model_source.h
// What can be exported: a run, a checkpoint, a Hugging Face directory or a GGUF file.
#ifndef TRIREME_MODELS_SOURCE_MODEL_SOURCE_H_
#define TRIREME_MODELS_SOURCE_MODEL_SOURCE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/matrix/quantized_matrix.h"
#include "models/formats/gguf/gguf.h"
#include "models/formats/hf/hf_config.h"
#include "models/spec/family.h"
#include "models/weights/run_text.h"
#include "models/weights/weight_source.h"

namespace trireme {

struct AdapterSource;  // models/weights/adapter_source.h

// The folder in run_dir with a copy of the tokenizer of the run's corpora (KeepTokenizer() in
// trainer/recipe/corpora.h), so that a run can be used where its corpora are not.
inline constexpr char kKeptTokenizer[] = "tokenizer";

struct ModelSource {
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
  // What the run that trained it, or its adapter, says about its text.
  RunText text;
  bool document_mask = false;  // of a run: in its samples tokens saw only their own document
};

// Makes what a run says about text part of the model that it trained: its tokenizer goes before the base model's, whose
// ids of special tokens are forgotten where the two differ. Errors are kData: that tokenizer is gone, or another now.
absl::Status UseRunText(const RunText& text, ModelSource* source);

// The decoder that a configuration describes.
absl::StatusOr<DecoderSpec> SpecifyModel(const ModelConfig& model, const std::vector<ModelFamily>& families);

// SOURCE: a run_dir (its newest checkpoint that is whole), a checkpoint's step folder, a Hugging Face directory or
// ORG/NAME in the local cache, or a GGUF file. A checkpoint's weights are checked against their digests first.
// alive: called now and then meanwhile; may be empty. averaged: a run's averaged weights (ema) instead of its last
// ones; kConfig where there are none.
absl::StatusOr<ModelSource> OpenModelSource(const std::string& source, const std::vector<ModelFamily>& families,
                                            const std::function<void()>& alive, bool averaged = false);

// What OpenModelSource() will make of a checkpoint of a run with this resolved config, before there is one: its
// weights and its adapter have made-up values. `spec` is the run's decoder, with its adapter.
absl::StatusOr<ModelSource> OpenFutureCheckpoint(const RunConfig& config, const DecoderSpec& spec,
                                                 const std::vector<ModelFamily>& families,
                                                 const std::function<void()>& alive);

// `base` with the adapter merged into its weights (MergedWeights()).
absl::StatusOr<ModelSource> Merged(const ModelSource& base, std::shared_ptr<const AdapterSource> adapter,
                                   const DecoderSpec& spec, bool keep_dtype,
                                   const std::function<void()>& alive = nullptr);

}  // namespace trireme

#endif  // TRIREME_MODELS_SOURCE_MODEL_SOURCE_H_
