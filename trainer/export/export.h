// trainer/export/export.h
// A trained model as a directory or file that other software loads.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "models/spec/family.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

struct ExportOptions {
  std::string source;   // run_dir, checkpoint step, Hugging Face directory or GGUF file
  std::string adapter;  // an adapter (adapter_source.h) to use with it; "": the source's own
  bool merge = false;   // add the adapter to the weights
  // Where the base was quantized while it was loaded, merges onto the weights as they are stored, instead of those that
  // training saw.
  bool merge_onto_original = false;
  bool averaged = false;  // the run's averaged weights (ema) instead of its last ones
  std::string output;     // must not exist
  ExportConfig::Format format = ExportConfig::HF;
  ExportConfig::Dtype dtype = ExportConfig::AS_STORED;
  bool quantize_nf4 = false;             // HF: matrices of blocks as bitsandbytes' NF4, with double quantization
  uint64_t shard_bytes = 5'000'000'000;  // of one safetensors file; a larger tensor has a file of its own
  std::function<void()> alive;           // called now and then; may be empty
  bool without_weights = false;          // a trial: all but a model's weights is written
};

// Writes OUTPUT: a Hugging Face directory (export_hf.h) or a GGUF file (export_gguf.h). Weights are read, converted and
// written in pieces of some 16 MiB. All happens in OUTPUT.tmp-ID, which is read back and checked, then renamed; nothing
// is left behind on failure. Called by one process.
absl::Status Export(const ExportOptions& options, const std::vector<ModelFamily>& families);

// "5GB", "500MB", "20000": bytes, in powers of ten as Hugging Face counts them.
absl::StatusOr<uint64_t> ParseSize(const std::string& text);

// kConfig when config.export contradicts itself or its format cannot hold the model.
absl::Status CheckExport(const RunConfig& config, const std::vector<ModelFamily>& families);
// kConfig when the output exists. Reads the file system; not collective.
absl::Status CheckExportOutput(const RunConfig& config);

// Tries what a run will write at its end, its adapter and its export, as far as that can be known before there are
// weights: names, shapes, tokenizer and settings go through the code that will write them. Nothing is left behind.
// scratch: a folder that exists, to write into; "": the places themselves, which thereby prove to be writable. alive:
// called now and then; may be empty. Not collective.
absl::Status TryWriting(const Recipe& recipe, const std::vector<ModelFamily>& families, const std::string& scratch,
                        const std::function<void()>& alive);

// Collective: rank 0 writes the adapter of the checkpoint of `step` to run_dir/adapter, a PEFT directory, in place of
// an older one; nothing for a run without adapter. if_older: nothing either where the directory is no older than the
// checkpoint. Errors are agreed.
absl::Status SaveAdapter(const Recipe& recipe, int64_t step, Mesh& mesh, bool if_older = false);

// Collective: rank 0 exports the checkpoint of `step` as config.export says; nothing without it, or when the output is
// there already (a finished run started again). Errors are agreed.
absl::Status ExportAtEnd(const Recipe& recipe, int64_t step, const std::vector<ModelFamily>& families, Mesh& mesh);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_H_
