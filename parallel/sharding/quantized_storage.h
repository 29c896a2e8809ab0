// parallel/sharding/quantized_storage.h
// How a buffer holds matrices in fewer bits: what it stores and gathers are bytes.
#ifndef TRIREME_PARALLEL_SHARDING_QUANTIZED_STORAGE_H_
#define TRIREME_PARALLEL_SHARDING_QUANTIZED_STORAGE_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "kernels/matrix/quantized_matrix.h"
#include "launch/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/sharding/rectangle.h"

namespace trireme {

// The one place where dequantized values stand, reused by all weights: one product needs one at a time.
class DequantizedValues {
 public:
  DequantizedValues(at::ScalarType compute, at::Device device);
  at::Tensor Take(int64_t numel);  // [numel]; what was taken before is lost

 private:
  at::TensorOptions options_;
  at::Tensor values_;
};

// A buffer of `numel` elements is cut into `pieces` equal ones (multiples of 256 elements), one per shard rank. A piece
// is stored as its codes (NF4, MXFP4: two in a byte), then its scales (NF4: one for 64 elements, 8 bits or float32;
// MXFP4: one of 8 bits for 32), so that one gather moves both. What belongs to a whole matrix (the scales of scales,
// the scales of 8-bit rows) is small and on every rank. Blocks are those of the whole matrix: a block's number there
// finds its nested scale, and any layout gives the same bits.
class QuantizedStorage {
 public:
  struct Matrix {
    int64_t offset = 0;          // of its first element in the buffer
    Rectangle rectangle;         // of this tensor rank
    std::vector<int64_t> shape;  // whole
  };
  // Who holds other parts of a matrix; null: nobody.
  struct Groups {
    ProcessGroup* tensor = nullptr;
    ProcessGroup* shard = nullptr;
  };
  // Gives elements [begin, end) of the flattened rectangle of a matrix.
  using Reader = std::function<absl::Status(int matrix, int64_t begin, int64_t end, float* out)>;

  QuantizedStorage(QuantizationFormat format, std::vector<Matrix> matrices, int64_t numel, int pieces,
                   at::Device device);

  // Why a rectangle of a matrix of `shape` cannot be held; OK: it can.
  static absl::Status Check(QuantizationFormat format, const std::vector<int64_t>& shape, const Rectangle& rectangle);

  // What `numel` elements take, without what is on every rank.
  static int64_t StoredBytes(QuantizationFormat format, int64_t numel);

  int pieces() const { return pieces_; }
  int64_t OffsetOf(int matrix) const { return matrices_[static_cast<size_t>(matrix)].offset; }
  int64_t NumelOf(int matrix) const { return matrices_[static_cast<size_t>(matrix)].rectangle.numel(); }
  int64_t piece_bytes() const { return piece_bytes_; }
  int64_t SideBytes() const;  // of what is on every rank

  // gathered [pieces * piece_bytes] -> out [numel of the rectangle].
  void Dequantize(const at::Tensor& gathered, int matrix, at::Tensor out) const;

  // Fills the part of `matrix` that lies in elements [own_begin, own_begin + own_numel) of the buffer; own
  // [own_numel / piece_numel * piece_bytes]. Collective over `groups`, together all ranks that hold parts of the
  // matrix; a rank whose reads fail takes part nevertheless and returns the first failure.
  absl::Status Quantize(int matrix, int64_t own_begin, int64_t own_numel, ValueType type, const Groups& groups,
                        const Reader& read, at::Tensor own);
  // Takes the same elements from a matrix that is quantized already.
  void Take(int matrix, int64_t own_begin, int64_t own_numel, const QuantizedMatrix& whole, at::Tensor own);

 private:
  // What all ranks keep of a matrix.
  struct Side {
    ValueType type = ValueType::kFloat32;
    float nested_offset = 0;
    at::Tensor nested_map, nested_absmax;  // NF4, nested: [256], [groups of 256 blocks]
    at::Tensor row_absmax;                 // INT8: [rows of the rectangle]
  };
  // Where blocks of a rectangle stand in the whole matrix.
  struct Numbering {
    int64_t first_block, row_blocks, row_stride;
    int64_t Of(int64_t block) const { return first_block + block / row_blocks * row_stride + block % row_blocks; }
  };
  Numbering NumberingOf(const Matrix& matrix) const;
  absl::Status QuantizeNf4(int matrix, int64_t begin, int64_t end, int64_t own_begin, const Groups& groups,
                           const Reader& read, uint8_t* own);
  absl::Status QuantizeRows(int matrix, int64_t begin, int64_t end, int64_t own_begin, const Groups& groups,
                            const Reader& read, uint8_t* own);
  absl::Status QuantizeMxfp4(int matrix, int64_t begin, int64_t end, int64_t own_begin, const Reader& read,
                             uint8_t* own);
  // Where the own piece has an element's code, and its block's scale, in bytes. `element` counts from the own begin.
  int64_t CodeByte(int64_t element) const;
  int64_t ScaleByte(int64_t element) const;
  void SetNested(Side* side, const NestedScales& nested) const;

  QuantizationFormat format_;
  std::vector<Matrix> matrices_;
  std::vector<Side> sides_;
  int64_t piece_numel_;
  int pieces_;
  int64_t piece_bytes_;
  at::Device device_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_QUANTIZED_STORAGE_H_
