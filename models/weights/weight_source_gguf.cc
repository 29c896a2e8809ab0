#include <ATen/ops/empty.h>

#include <algorithm>

#include "models/weights/gguf_layout.h"
#include "models/weights/weight_source.h"

namespace trireme {
namespace {

constexpr int64_t kPieceNumel = int64_t{4} << 20;

at::ScalarType DtypeOf(const GgufTensor& tensor) {
  if (tensor.type == GgufType::kF16) return at::kHalf;
  if (tensor.type == GgufType::kBF16) return at::kBFloat16;
  return at::kFloat;
}

// Decodes consecutive elements of a tensor of one row, or of several that are one vector of ours.
absl::Status ReadElements(const GgufFile& file, const GgufTensor& tensor, int64_t begin, int64_t end, float* out) {
  const int64_t columns = tensor.columns();
  while (begin < end) {
    const int64_t row = begin / columns, last = std::min(end, (row + 1) * columns);
    RETURN_IF_ERROR(file.Read(tensor, row, row + 1, begin - row * columns, last - row * columns, out));
    out += last - begin;
    begin = last;
  }
  return absl::OkStatus();
}

// Decodes stored rows [row, row + rows) as ours: of a vector, elements.
absl::Status ReadRows(const GgufFile& file, const GgufTensor& tensor, bool matrix, int64_t row, int64_t rows,
                      int64_t column, int64_t columns, float* out) {
  return matrix ? file.Read(tensor, row, row + rows, column, column + columns, out)
                : ReadElements(file, tensor, row, row + rows, out);
}

// Decodes a piece of a parameter, run by run of rows that are consecutive in the file, and as ours.
absl::Status ReadPiece(const GgufFile& file, const GgufLayout& layout, const WeightTable::Parameter& parameter,
                       int64_t row, int64_t rows, int64_t column, int64_t columns, float* out) {
  const bool matrix = parameter.shape.size() == 2;
  for (const RowRun& run : parameter.runs) {
    const int64_t first = std::max(row, run.row), last = std::min(row + rows, run.row + run.rows);
    if (first >= last) continue;
    const GgufLayout::Extra& extra = layout.extras[run.stored];
    float* target = out + (first - row) * columns;
    if (!extra.key.empty()) {
      *target = *FindGgufNumber(file.header(), extra);
      continue;
    }
    const GgufTensor& tensor = *file.FindTensor(layout.table.stored[run.stored].name);
    const int64_t stored = run.stored_row + first - run.row;
    if (extra.paired_heads == 0) {
      RETURN_IF_ERROR(ReadRows(file, tensor, matrix, stored, last - first, column, columns, target));
    } else {
      for (int64_t i = 0; i < last - first; ++i)
        RETURN_IF_ERROR(ReadRows(file, tensor, matrix, PairedRow(stored + i, extra.paired_heads), 1, column, columns,
                                 target + i * columns));
    }
    for (int64_t i = 0; extra.offset != 0 && i < (last - first) * columns; ++i) target[i] -= extra.offset;
  }
  return absl::OkStatus();
}

// Decodes these elements of the mapped file only, some 16 MiB at a time.
absl::Status Read(const GgufFile& file, const GgufLayout& layout, const std::string& name, const Rectangle& r,
                  const at::Tensor& out) {
  const std::vector<WeightTable::Parameter>& parameters = layout.table.parameters;
  const auto parameter =
      std::find_if(parameters.begin(), parameters.end(), [&](const auto& one) { return one.name == name; });
  TRIREME_CHECK(parameter != parameters.end(), name, " is no parameter");
  const bool matrix = r.size.size() == 2;
  const int64_t rows = r.size[0], columns = matrix ? r.size[1] : 1, column = matrix ? r.offset[1] : 0;
  const int64_t step = std::max<int64_t>(1, kPieceNumel / std::max<int64_t>(1, columns));
  const at::Tensor target = matrix ? out : out.view({rows, 1});
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t now = std::min(step, rows - row);
    const at::Tensor values = at::empty({now, columns}, at::TensorOptions().dtype(at::kFloat));
    RETURN_IF_ERROR(
        ReadPiece(file, layout, *parameter, r.offset[0] + row, now, column, columns, values.mutable_data_ptr<float>()));
    target.narrow(0, row, now).copy_(values);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightSource> OpenGgufWeights(std::shared_ptr<const GgufFile> file, const GgufArchitecture& architecture,
                                             const DecoderSpec& spec) {
  const auto layout = std::make_shared<const GgufLayout>(GgufLayoutOf(architecture, spec));
  RETURN_IF_ERROR(CheckGgufTensors(file->header(), *layout));
  WeightSource source;
  source.description = absl::StrCat("model ", file->path());
  for (const WeightTable::Parameter& parameter : layout->table.parameters) {
    const GgufTensor* stored = file->FindTensor(layout->table.stored[parameter.runs[0].stored].name);
    source.tensors.push_back({parameter.name, parameter.shape, stored != nullptr ? DtypeOf(*stored) : at::kFloat});
  }
  source.read = [file, layout](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) {
    return Read(*file, *layout, tensor.name, rectangle, out);
  };
  return source;
}

}  // namespace trireme
