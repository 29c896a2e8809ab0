// models/weights/sharded_tensors.h
// Tensors of which each rank holds rectangles, in folders of safetensors files that PyTorch's
// torch.distributed.checkpoint reads (HuggingFaceStorageReader): metadata DCP_SHARDING_INFO gives every key's offsets;
// a key stands once per file, so the up to three rectangles a rank owns of a tensor go into up to three files.
#ifndef TRIREME_MODELS_WEIGHTS_SHARDED_TENSORS_H_
#define TRIREME_MODELS_WEIGHTS_SHARDED_TENSORS_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/formats/base/safetensors.h"
#include "models/weights/checkpoint.pb.h"
#include "parallel/sharding/parameter_buffer.h"
#include "parallel/sharding/rectangle.h"

namespace trireme {

// Loading, saving and comparing give a sign of life to the watchdog after each piece of so many bytes.
inline constexpr int64_t kPieceBytes = int64_t{16} << 20;

// The folders of a checkpoint that hold a model's weights: those of its step, and their moving average (ema).
inline constexpr char kWeightsPart[] = "weights", kAveragesPart[] = "averages";

// "F32", "BF16", "F16", "U8" as safetensors files name them, and floating ones back; nullopt for others.
const char* SafetensorsName(at::ScalarType dtype);
std::optional<at::ScalarType> FloatTypeOf(const std::string& safetensors_dtype);

// One rectangle on this rank: `values` is a flat view of its elements, on any device.
struct TensorPart {
  std::string name;
  std::vector<int64_t> shape;  // of the whole tensor
  Rectangle rectangle;
  at::Tensor values;  // [rectangle.numel()], float32, bfloat16 or bytes
};

// Elements [begin, end) of the flattened rectangle() of a parameter, which stand in `values` [end - begin].
std::vector<TensorPart> PartsOfElements(const ParameterBuffer& buffer, int parameter, int64_t begin, int64_t end,
                                        const at::Tensor& values);

// The rectangles of a buffer's own tensor (own weights or optimizer state), named NAME or NAME.suffix. unique: only
// what this rank saves. None where `own` is undefined: a quantized buffer has no weights that could be written as they
// are.
std::vector<TensorPart> PartsOf(const ParameterBuffer& buffer, const at::Tensor& own, const std::string& suffix,
                                bool unique);

// Likewise of a tensor that holds some of the buffer's segments() only: from begin[i] on the elements of segment i; -1:
// it does not hold that one. With block > 1 it holds a number for every so many elements of the flattened parameter,
// which no rank's part is cut inside of: their tensor has a column for each block of a row where rows are whole blocks,
// else it has one dimension.
std::vector<TensorPart> PartsOfSegments(const ParameterBuffer& buffer, const at::Tensor& values,
                                        const std::vector<int64_t>& begin, int64_t block, const std::string& suffix,
                                        bool unique);

// Writes this rank's parts into `folder` (which exists) as shard-RRRRR-K.safetensors. Returns the files, paths relative
// to folder's parent. Not collective. alive: called after every piece of some 16 MiB; may be empty.
absl::StatusOr<std::vector<CheckpointFile>> WriteParts(const std::string& folder, int rank,
                                                       const std::vector<TensorPart>& parts,
                                                       const std::function<void()>& alive = nullptr);

// A folder of such files (or of plain safetensors files: each key is then whole), opened for reading.
class ShardedTensorReader {
 public:
  static absl::StatusOr<ShardedTensorReader> Open(const std::string& folder);

  // The files of a checkpoint's `part` ("weights", "optimizer") that its manifest names, whatever else lies there.
  // alive: called for every file, and by Read() after every piece of some 16 MiB; may be empty.
  static absl::StatusOr<ShardedTensorReader> Open(const std::string& checkpoint, const CheckpointManifest& manifest,
                                                  const std::string& part, std::function<void()> alive = nullptr);

  // Fills part.values from the rectangles that overlap it, reading only those bytes. Missing elements, another shape or
  // dtype are errors.
  absl::Status Read(const TensorPart& part) const;

  // How many bytes of tensors Read() has read so far.
  int64_t bytes_read() const { return bytes_read_; }

  // How the tensor is stored; nullopt: it is not there, or as no type of ours.
  std::optional<at::ScalarType> StoredType(const std::string& name) const;

  // Global shapes by name: max(offset + size) over the files.
  const std::map<std::string, std::vector<int64_t>>& shapes() const { return shapes_; }

 private:
  struct Source {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    Rectangle rectangle;
  };
  static absl::StatusOr<ShardedTensorReader> OpenFiles(const std::string& folder, std::vector<std::string> paths,
                                                       std::function<void()> alive);

  std::string folder_;
  std::function<void()> alive_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, std::vector<Source>> sources_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  mutable int64_t bytes_read_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_SHARDED_TENSORS_H_
