#include <ATen/ops/empty.h>

#include <algorithm>

#include "models/spec/parameters.h"
#include "models/weights/tensor_mismatch.h"
#include "models/weights/weight_source.h"

namespace trireme {
namespace {

constexpr int64_t kPieceNumel = int64_t{4} << 20;

absl::Status CheckTensors(const GgufFile& file, const GgufModelFacts& facts, const DecoderSpec& spec) {
  size_t found = 0;
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    const std::optional<std::string> name = ToGgufName(*facts.architecture, parameter.name);
    const GgufTensor* tensor = name.has_value() ? file.FindTensor(*name) : nullptr;
    if (tensor == nullptr || tensor->shape != parameter.shape) {
      return Error(ExitCode::kData, "gguf ", file.path(), ": has ",
                   tensor == nullptr ? "nothing" : ShapeText(tensor->shape), " for ", parameter.name, " ",
                   ShapeText(parameter.shape), ", which the model needs");
    }
    ++found;
  }
  for (const GgufTensor& tensor : file.tensors())
    found += ToCanonicalName(*facts.architecture, tensor.name).has_value() ? 0 : 1;
  if (found == file.tensors().size()) return absl::OkStatus();
  return Error(ExitCode::kData, "gguf ", file.path(), ": has ", file.tensors().size(), " tensors, the model takes ",
               found);
}

at::ScalarType DtypeOf(const GgufTensor& tensor) {
  if (tensor.type == GgufType::kF16) return at::kHalf;
  if (tensor.type == GgufType::kBF16) return at::kBFloat16;
  return at::kFloat;
}

// Decodes these elements of the mapped file only, some 16 MiB at a time. A vector is one row in the file.
absl::Status Read(const GgufFile& file, const GgufModelFacts& facts, const std::string& name, const Rectangle& r,
                  const at::Tensor& out) {
  const bool matrix = r.size.size() == 2;
  const int64_t rows = matrix ? r.size[0] : 1, columns = r.size.back();
  const int64_t first_row = matrix ? r.offset[0] : 0, first_column = r.offset.back();
  const int64_t step = std::max<int64_t>(1, kPieceNumel / std::max<int64_t>(1, columns));
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t now = std::min(step, rows - row);
    at::Tensor values = at::empty({now, columns}, at::TensorOptions().dtype(at::kFloat));
    RETURN_IF_ERROR(ReadGgufRows(file, facts, name, first_row + row, first_row + row + now, first_column,
                                 first_column + columns, values.mutable_data_ptr<float>()));
    const at::Tensor target = matrix ? out.narrow(0, row, now) : out;
    target.copy_(values.view(target.sizes()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightSource> OpenGgufWeights(std::shared_ptr<const GgufFile> file, const GgufModelFacts& facts,
                                             const DecoderSpec& spec) {
  RETURN_IF_ERROR(CheckTensors(*file, facts, spec));
  WeightSource source;
  source.description = absl::StrCat("model ", file->path());
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    const std::string name = ToGgufName(*facts.architecture, parameter.name).value();
    source.tensors.push_back({parameter.name, parameter.shape, DtypeOf(*file->FindTensor(name))});
  }
  source.read = [file, facts](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) {
    return Read(*file, facts, tensor.name, rectangle, out);
  };
  return source;
}

}  // namespace trireme
