// models/weights/weight_source.h
// The weights of a model wherever they are (a Hugging Face directory, a GGUF file, a checkpoint) as the decoder's
// parameters, read rectangle by rectangle.
#ifndef TRIREME_MODELS_WEIGHTS_WEIGHT_SOURCE_H_
#define TRIREME_MODELS_WEIGHTS_WEIGHT_SOURCE_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/matrix/quantized_matrix.h"
#include "models/formats/gguf/gguf.h"
#include "models/formats/gguf/gguf_architecture.h"
#include "models/spec/decoder_spec.h"
#include "models/spec/weight_table.h"
#include "models/weights/sharded_tensors.h"
#include "parallel/comm/mesh.h"
#include "parallel/sharding/parameter_buffer.h"
#include "parallel/sharding/rectangle.h"

namespace trireme {

struct SourceTensor {
  std::string name;  // ours
  std::vector<int64_t> shape;
  // The number format that is stored: float32, bfloat16 or float16; for quantized tensors, what they dequantize to.
  at::ScalarType dtype = at::kFloat;
  // What copies are stored as where nobody says: of numbers that became wider as they were unpacked.
  std::optional<at::ScalarType> narrow = std::nullopt;

  at::ScalarType copied_as() const { return narrow.value_or(dtype); }
  int64_t rows() const { return shape[0]; }
  int64_t row_numel() const { return shape.size() == 2 ? shape[1] : 1; }
};

// Fills `out` [rows, columns] (any strides, dtype and device; a vector has one column) with a rectangle of a tensor,
// reading little else.
using TensorReader = std::function<absl::Status(const SourceTensor&, const Rectangle&, const at::Tensor& out)>;

struct WeightSource {
  std::string description;            // "checkpoint runs/a/checkpoints/step-00000100"
  std::vector<SourceTensor> tensors;  // the model's parameters, in its order
  TensorReader read;
  // Matrices that are stored quantized, by name, in memory that `read` keeps; `read` dequantizes them.
  std::map<std::string, QuantizedMatrix> quantized;
};

// The directory must hold exactly the tensors of `table` in their shapes, F32, BF16, F16 or quantized as `spec` says
// (buffers that the table ignores and a head that repeats a tied embedding may be there too); else kData, listing what
// is missing, unexpected or of another shape. compare_head: that head is compared with the embedding; both are read
// whole. alive: called now and then meanwhile; may be empty.
absl::StatusOr<WeightSource> OpenHfWeights(const std::string& folder, const WeightTable& table, const DecoderSpec& spec,
                                           bool compare_head, const std::function<void()>& alive = nullptr);

// The file, of this architecture, must hold the model's tensors in their shapes, of any type that GgufDequantize knows.
absl::StatusOr<WeightSource> OpenGgufWeights(std::shared_ptr<const GgufFile> file, const GgufArchitecture& architecture,
                                             const DecoderSpec& spec);

// The weights of a checkpoint with this manifest, stored as `dtype`. part: kWeightsPart or kAveragesPart.
absl::StatusOr<WeightSource> OpenCheckpointWeights(const std::string& checkpoint, const CheckpointManifest& manifest,
                                                   const DecoderSpec& spec, at::ScalarType dtype,
                                                   const std::string& part);

// How the checkpoints of a run with this config store what it trains.
at::ScalarType StoredBy(const RunConfig& config);

// Tensors out of a checkpoint's shards.
TensorReader ReaderOf(std::shared_ptr<const ShardedTensorReader> shards);

// A whole tensor, in its shape and dtype, on the CPU.
absl::StatusOr<at::Tensor> ReadWhole(const TensorReader& read, const SourceTensor& tensor);

// Gives all rows of a tensor to `use`, some 16 MiB (as float32) at a time and whole multiples of `multiple` rows (which
// divides them): flat, on the CPU, in the tensor's dtype.
absl::Status ReadPieces(const WeightSource& source, const SourceTensor& tensor, int64_t multiple,
                        const std::function<absl::Status(const at::Tensor&)>& use);

// Does the same for a tensor as the table stores it; the source has its parameters.
absl::Status ReadStoredPieces(const WeightSource& source, const WeightTable& table, size_t stored, int64_t multiple,
                              const std::function<absl::Status(const at::Tensor&)>& use);

// Fills what this rank holds of every weight of the wanted buffers, each rank reading its own rectangles. Matrices of
// quantized buffers are taken from source.quantized, which then holds them all, or quantized while they are read.
// Collective over each buffer's groups, also where reads fail: the first failure on this rank is returned. Publish()
// must follow.
using Wanted = std::function<bool(const ParameterBuffer&)>;
absl::Status FillWeights(const WeightSource& source, Mesh& mesh, const std::vector<ParameterBuffer*>& buffers,
                         const Wanted& wanted);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_WEIGHT_SOURCE_H_
