#include "trainer/weight_source.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>

#include "models/parameters.h"
#include "trainer/sharded_tensors.h"

namespace trireme {
namespace {

constexpr int64_t kPieceBytes = 16 << 20;

// Rows per piece.
int64_t Step(int64_t multiple, int64_t row_numel) {
  const int64_t row_bytes = row_numel * static_cast<int64_t>(sizeof(float));
  return multiple * std::max<int64_t>(1, kPieceBytes / (multiple * row_bytes));
}

// Rows x columns, or rows of a vector.
Rectangle Part(const std::vector<int64_t>& shape, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  if (shape.size() == 1) return {{row}, {rows}};
  return {{row, column}, {rows, columns}};
}

}  // namespace

absl::StatusOr<WeightSource> OpenCheckpointWeights(const std::string& folder, const DecoderSpec& spec,
                                                   at::ScalarType dtype) {
  ASSIGN_OR_RETURN(ShardedTensorReader opened, ShardedTensorReader::Open(folder));
  const auto reader = std::make_shared<const ShardedTensorReader>(std::move(opened));
  WeightSource source;
  source.description = absl::StrCat("checkpoint ", folder);
  for (const ParameterSpec& parameter : DecoderParameters(spec))
    source.tensors.push_back({parameter.name, parameter.shape, dtype});
  source.read = [reader](const SourceTensor& tensor, const Rectangle& rectangle,
                         const at::Tensor& out) -> absl::Status {
    TensorPart part;
    part.name = tensor.name;
    part.shape = tensor.shape;
    part.rectangle = rectangle;
    part.values = at::empty({rectangle.numel()}, at::TensorOptions().dtype(tensor.dtype));
    RETURN_IF_ERROR(reader->Read(part));
    out.copy_(part.values.view(out.sizes()));
    return absl::OkStatus();
  };
  return source;
}

absl::Status ReadPieces(const WeightSource& source, const SourceTensor& tensor, int64_t multiple,
                        const std::function<absl::Status(const at::Tensor&)>& use) {
  const int64_t columns = tensor.row_numel(), step = Step(multiple, columns);
  for (int64_t begin = 0; begin < tensor.rows(); begin += step) {
    const int64_t rows = std::min(tensor.rows() - begin, step);
    const at::Tensor piece = at::empty({rows, columns}, at::TensorOptions().dtype(tensor.dtype));
    RETURN_IF_ERROR(source.read(tensor, Part(tensor.shape, begin, rows, 0, columns), piece));
    RETURN_IF_ERROR(use(piece.view({-1})));
  }
  return absl::OkStatus();
}

absl::Status ReadStoredPieces(const WeightSource& source, const WeightTable& table, size_t index,
                              const std::function<absl::Status(const at::Tensor&)>& use) {
  const WeightTable::Stored& stored = table.stored[index];
  const int64_t rows = stored.shape[0], columns = stored.shape.size() == 2 ? stored.shape[1] : 1;
  const at::ScalarType dtype = source.tensors[stored.runs[0].parameter].dtype;
  const int64_t step = Step(1, columns);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    const at::Tensor piece = at::empty({end - begin, columns}, at::TensorOptions().dtype(dtype));
    for (const RowRun& run : stored.runs) {
      const SourceTensor& tensor = source.tensors[run.parameter];
      if (stored.transposed) {
        RETURN_IF_ERROR(source.read(tensor, Part(tensor.shape, run.row, run.rows, begin, end - begin),
                                    piece.narrow(1, run.stored_row, run.rows).t()));
        continue;
      }
      const int64_t first = std::max(begin, run.stored_row), last = std::min(end, run.stored_row + run.rows);
      if (first >= last) continue;
      RETURN_IF_ERROR(source.read(tensor,
                                  Part(tensor.shape, run.row + first - run.stored_row, last - first, 0, columns),
                                  piece.narrow(0, first - begin, last - first)));
    }
    RETURN_IF_ERROR(use(piece.view({-1})));
  }
  return absl::OkStatus();
}

absl::Status LoadWeights(const WeightSource& source, Mesh& mesh, Model& model) {
  std::map<std::string, const SourceTensor*> tensors;
  for (const SourceTensor& tensor : source.tensors) tensors[tensor.name] = &tensor;
  for (ParameterBuffer* buffer : model.buffers()) {
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
      const auto found = tensors.find(part.name);
      if (found == tensors.end() || found->second->shape != part.shape)
        return Error(ExitCode::kData, source.description, ": has no ", part.name, " of the shape that the model needs");
      RETURN_IF_ERROR(source.read(*found->second, part.rectangle, part.values.view({part.rectangle.size[0], -1})));
    }
    mesh.log().Beat("loading weights");
  }
  return absl::OkStatus();
}

}  // namespace trireme
