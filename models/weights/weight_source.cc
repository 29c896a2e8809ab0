#include "models/weights/weight_source.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <map>

#include "models/spec/parameters.h"
#include "models/weights/sharded_tensors.h"

namespace trireme {
namespace {

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

absl::StatusOr<WeightSource> OpenCheckpointWeights(const std::string& checkpoint, const CheckpointManifest& manifest,
                                                   const DecoderSpec& spec, at::ScalarType dtype,
                                                   const std::string& part) {
  ASSIGN_OR_RETURN(ShardedTensorReader opened, ShardedTensorReader::Open(checkpoint, manifest, part));
  const auto reader = std::make_shared<const ShardedTensorReader>(std::move(opened));
  WeightSource source;
  source.description = absl::StrCat("checkpoint ", checkpoint);
  for (const ParameterSpec& parameter : DecoderParameters(spec))
    source.tensors.push_back({parameter.name, parameter.shape, dtype});
  source.read = ReaderOf(reader);
  return source;
}

at::ScalarType StoredBy(const RunConfig& config) {
  return config.precision().master_weights() ? at::kFloat : at::kBFloat16;
}

TensorReader ReaderOf(std::shared_ptr<const ShardedTensorReader> shards) {
  return [shards](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) -> absl::Status {
    TensorPart part;
    part.name = tensor.name;
    part.shape = tensor.shape;
    part.rectangle = rectangle;
    // What was frozen may be stored as another type than the rest.
    const at::ScalarType stored = shards->StoredType(tensor.name).value_or(tensor.dtype);
    part.values = at::empty({rectangle.numel()}, at::TensorOptions().dtype(stored));
    RETURN_IF_ERROR(shards->Read(part));
    out.copy_(part.values.view(out.sizes()));
    return absl::OkStatus();
  };
}

absl::StatusOr<at::Tensor> ReadWhole(const TensorReader& read, const SourceTensor& tensor) {
  const at::Tensor values = at::empty(tensor.shape, at::TensorOptions().dtype(tensor.dtype));
  const Rectangle all = {std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape};
  RETURN_IF_ERROR(read(tensor, all, values.view({tensor.rows(), tensor.row_numel()})));
  return values;
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

namespace {

// Stored rows are columns of ours: `step` of them at a time, of one of the matrices in the tensor.
absl::Status ReadTransposed(const WeightSource& source, const WeightTable::Stored& stored, at::ScalarType dtype,
                            int64_t step, const std::function<absl::Status(const at::Tensor&)>& use) {
  const int64_t ours = stored.shape[1], columns = stored.shape[0] / stored.pieces;
  for (int64_t matrix = 0; matrix < stored.pieces; ++matrix) {
    for (int64_t begin = 0; begin < columns; begin += step) {
      const int64_t size = std::min(step, columns - begin);
      const at::Tensor piece = at::empty({size, ours}, at::TensorOptions().dtype(dtype));
      for (const RowRun& run : stored.runs) {
        const int64_t first = std::max(matrix * ours, run.stored_row),
                      last = std::min((matrix + 1) * ours, run.stored_row + run.rows);
        if (first >= last) continue;
        const SourceTensor& tensor = source.tensors[run.parameter];
        RETURN_IF_ERROR(source.read(tensor,
                                    Part(tensor.shape, run.row + first - run.stored_row, last - first, begin, size),
                                    piece.narrow(1, first - matrix * ours, last - first).t()));
      }
      RETURN_IF_ERROR(use(piece.view({-1})));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadStoredPieces(const WeightSource& source, const WeightTable& table, size_t index, int64_t multiple,
                              const std::function<absl::Status(const at::Tensor&)>& use) {
  const WeightTable::Stored& stored = table.stored[index];
  const int64_t rows = stored.shape[0], columns = stored.shape.size() == 2 ? stored.shape[1] : 1;
  const at::ScalarType dtype = source.tensors[stored.runs[0].parameter].dtype;
  const int64_t step = Step(multiple, columns);
  if (stored.transposed) return ReadTransposed(source, stored, dtype, step, use);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    const at::Tensor piece = at::empty({end - begin, columns}, at::TensorOptions().dtype(dtype));
    for (const RowRun& run : stored.runs) {
      const SourceTensor& tensor = source.tensors[run.parameter];
      const int64_t first = std::max(begin, run.stored_row), last = std::min(end, run.stored_row + run.rows);
      if (first >= last) continue;
      const int64_t row = run.row + (first - run.stored_row) * run.step, extent = (last - first - 1) * run.step + 1;
      const at::Tensor target = piece.narrow(0, first - begin, last - first);
      const at::Tensor rows_between = run.step == 1 ? target : at::empty({extent, columns}, piece.options());
      RETURN_IF_ERROR(source.read(tensor, Part(tensor.shape, row, extent, 0, columns), rows_between));
      if (run.step > 1) target.copy_(rows_between.slice(0, 0, extent, run.step));
    }
    RETURN_IF_ERROR(use(piece.view({-1})));
  }
  return absl::OkStatus();
}

absl::Status FillWeights(const WeightSource& source, Mesh& mesh, const std::vector<ParameterBuffer*>& buffers,
                         const Wanted& wanted) {
  std::map<std::string, const SourceTensor*> tensors;
  for (const SourceTensor& tensor : source.tensors) tensors[tensor.name] = &tensor;
  absl::Status status;
  const auto read = [&](const TensorPart& part) -> absl::Status {
    const auto found = tensors.find(part.name);
    if (found == tensors.end() || found->second->shape != part.shape)
      return Error(ExitCode::kData, source.description, ": has no ", part.name, " of the shape that the model needs");
    const at::Tensor rows = part.values.view({part.rectangle.size[0], -1});
    const int64_t step = Step(/*multiple=*/1, rows.size(1));
    for (int64_t row = 0; row < rows.size(0); row += step) {
      Rectangle piece = part.rectangle;
      piece.offset[0] += row;
      piece.size[0] = std::min(step, rows.size(0) - row);
      RETURN_IF_ERROR(source.read(*found->second, piece, rows.narrow(0, row, piece.size[0])));
      mesh.log().Beat("loading weights");
    }
    return absl::OkStatus();
  };
  // A rank that failed goes on taking part in what is collective.
  const auto attempt = [&](const TensorPart& part) {
    if (status.ok()) status = read(part);
    return status;
  };
  for (ParameterBuffer* buffer : buffers) {
    if (!wanted(*buffer)) continue;
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
      if (!attempt(part).ok()) break;
    }
    if (buffer->quantized() && source.quantized.empty()) {
      const absl::Status done = buffer->QuantizeFrom([&](int parameter, int64_t begin, int64_t end, float* out) {
        const at::Tensor values = at::from_blob(out, {end - begin}, at::TensorOptions().dtype(at::kFloat));
        for (const TensorPart& part : PartsOfElements(*buffer, parameter, begin, end, values))
          RETURN_IF_ERROR(attempt(part));
        return absl::OkStatus();
      });
      if (status.ok()) status = done;
    }
    for (size_t i = 0; i < buffer->specs().size() && buffer->quantized() && !source.quantized.empty(); ++i) {
      const auto found = source.quantized.find(buffer->specs()[i].name);
      TRIREME_CHECK(found != source.quantized.end(), buffer->specs()[i].name, " is not among the quantized matrices");
      buffer->TakeQuantized(static_cast<int>(i), found->second);
      mesh.log().Beat("loading weights");
    }
  }
  return status;
}

}  // namespace trireme
