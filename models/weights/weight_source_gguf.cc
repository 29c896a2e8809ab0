#include <ATen/ops/empty.h>

#include <algorithm>

#include "models/weights/gguf_layout.h"
#include "models/weights/weight_source.h"

namespace trireme {
namespace {

constexpr int64_t kPieceNumel = int64_t{4} << 20;

at::ScalarType DtypeOf(const GgufTensor& tensor) {
  if (tensor.type == GgufType::kF16) return at::kHalf;
  // MXFP4's numbers have no more than four bits.
  if (tensor.type == GgufType::kBF16 || tensor.type == GgufType::kMXFP4) return at::kBFloat16;
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

// Our rows are columns of the matrices in the tensor, of one after the other: decodes `rows` of those from `stored` on.
absl::Status ReadTransposed(const GgufFile& file, const GgufTensor& tensor, const WeightTable::Stored& layout,
                            int64_t stored, int64_t rows, int64_t column, int64_t columns, float* out) {
  const int64_t ours = layout.shape[1], theirs = layout.shape[0] / layout.pieces;
  std::vector<float> turned;
  for (int64_t done = 0; done < rows;) {
    const int64_t matrix = (stored + done) / ours, at = (stored + done) % ours, size = std::min(rows - done, ours - at);
    const int64_t first = matrix * theirs + column;
    turned.resize(static_cast<size_t>(columns * size));
    RETURN_IF_ERROR(file.Read(tensor, first, first + columns, at, at + size, turned.data()));
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < columns; ++j) out[(done + i) * columns + j] = turned[static_cast<size_t>(j * size + i)];
    }
    done += size;
  }
  return absl::OkStatus();
}

// Decodes a piece of a parameter, run by run of rows that are consecutive in the file.
absl::Status ReadPiece(const GgufFile& file, const GgufLayout& layout, const WeightTable::Parameter& parameter,
                       int64_t row, int64_t rows, int64_t column, int64_t columns, float* out) {
  const bool matrix = parameter.shape.size() == 2;
  std::vector<float> spread;
  for (const RowRun& run : parameter.runs) {
    // Rows [first, last) of the run are in the piece.
    const auto rows_before = [&](int64_t end) {
      return std::clamp<int64_t>((end - run.row + run.step - 1) / run.step, 0, run.rows);
    };
    const int64_t first = row <= run.row ? 0 : rows_before(row), last = rows_before(row + rows), count = last - first;
    if (first >= last) continue;
    const GgufLayout::Extra& extra = layout.extras[run.stored];
    float* beginning = out + (run.row + first * run.step - row) * columns;
    float* target = beginning;
    if (run.step > 1) {
      spread.resize(static_cast<size_t>(count * columns));
      target = spread.data();
    }
    if (!extra.key.empty()) {
      *target = *FindGgufNumber(file.header(), extra);
      continue;
    }
    const WeightTable::Stored& layout_of = layout.table.stored[run.stored];
    const GgufTensor& tensor = *file.FindTensor(layout_of.name);
    const int64_t stored = run.stored_row + first;
    if (layout_of.transposed) {
      RETURN_IF_ERROR(ReadTransposed(file, tensor, layout_of, stored, count, column, columns, target));
    } else if (extra.paired_heads == 0) {
      RETURN_IF_ERROR(ReadRows(file, tensor, matrix, stored, count, column, columns, target));
    } else {
      for (int64_t i = 0; i < count; ++i)
        RETURN_IF_ERROR(ReadRows(file, tensor, matrix, PairedRow(stored + i, extra.paired_heads), 1, column, columns,
                                 target + i * columns));
    }
    for (int64_t i = 0; extra.offset != 0 && i < count * columns; ++i) target[i] -= extra.offset;
    for (int64_t i = 0; run.step > 1 && i < count; ++i)
      std::copy_n(target + i * columns, columns, beginning + i * run.step * columns);
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
