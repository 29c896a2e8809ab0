// trainer/export_source.h
// What can be exported: a run, a checkpoint, a Hugging Face directory or a GGUF file, as named tensors read piece by
// piece.
#ifndef TRIREME_TRAINER_EXPORT_SOURCE_H_
#define TRIREME_TRAINER_EXPORT_SOURCE_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "models/family.h"
#include "models/formats/gguf.h"
#include "models/formats/hf_config.h"

namespace trireme {

struct ExportTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::ScalarType dtype =
      at::kFloat;  // as stored: float32, bfloat16 or float16; of quantized ones: what they dequantize to

  int64_t rows() const { return shape[0]; }
  int64_t row_numel() const { return shape.size() == 2 ? shape[1] : 1; }
};

struct AdapterSource;  // trainer/adapter_source.h
class ShardedTensorReader;
struct TensorPart;  // trainer/sharded_tensors.h

// Rows [begin, end) of a tensor (elements, if it has one dimension), on the CPU, in its dtype.
using RowReader = std::function<absl::StatusOr<at::Tensor>(const ExportTensor&, int64_t begin, int64_t end)>;

struct ExportSource {
  std::string description;            // "checkpoint runs/a/checkpoints/step-00000100"
  ModelConfig model;                  // resolved
  std::vector<ExportTensor> tensors;  // in the model's order
  RowReader read;
  // Matrices that are stored quantized, by name; `read` dequantizes them.
  std::map<std::string, QuantizedMatrix> quantized;
  HfTokenIds ids;  // where the source is a model directory
  // A run that trains an adapter: the tensors above are its base model's. Null: none.
  std::shared_ptr<const AdapterSource> adapter;
  // Where tokenizer files may lie. The first folder with a tokenizer.json decides which tokenizer it is.
  std::vector<std::string> tokenizer_folders;
  // The GGUF file whose tokenizer is the model's; null unless no folder has one.
  std::shared_ptr<const GgufFile> tokenizer_gguf;
};

// Gives all rows of a tensor to `use`, some 16 MiB (as float32) at a time and whole multiples of `multiple` rows (which
// divides them): flat, on the CPU, in the tensor's dtype.
absl::Status ReadPieces(const ExportSource& source, const ExportTensor& tensor, int64_t multiple,
                        const std::function<absl::Status(const at::Tensor&)>& use);

// Rows of a tensor out of a checkpoint's shards.
absl::StatusOr<at::Tensor> ReadRows(const ShardedTensorReader& reader, const ExportTensor& tensor, int64_t begin,
                                    int64_t end);

// Fills a rectangle of `tensor`, reading the rows that it has a part of.
absl::Status FillPart(const RowReader& read, const ExportTensor& tensor, const TensorPart& part);

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

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_SOURCE_H_
