#include "models/weights/requantized.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <memory>

#include "kernels/matrix/nf4.h"
#include "models/spec/parameters.h"

namespace trireme {
namespace {

absl::StatusOr<at::Tensor> ThereAndBack(const SourceTensor& tensor, const at::Tensor& values,
                                        const QuantizationFormat& format) {
  const int64_t n = values.numel(), rows = tensor.rows();
  const auto* x = values.const_data_ptr<float>();
  const auto not_finite = [&] {
    return Error(ExitCode::kData, tensor.name, " holds numbers that are not finite; it cannot be quantized");
  };
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.shape = tensor.shape;
  std::vector<uint8_t> codes, scale_codes;
  if (format.method == QuantizationFormat::kInt8) {
    matrix.absmax.assign(rows, 0);
    if (!AddRowAbsmax(n, x, 0, tensor.row_numel(), matrix.absmax.data())) return not_finite();
    codes.resize(n);
    QuantizeInt8Rows(n, x, 0, tensor.row_numel(), matrix.absmax.data(), reinterpret_cast<int8_t*>(codes.data()));
  } else if (format.method == QuantizationFormat::kMxfp4) {
    codes.resize(n / 2);
    scale_codes.resize(n / kMxfp4Block);
    if (!QuantizeMxfp4(n, x, codes.data(), scale_codes.data())) return not_finite();
    matrix.scale_codes = scale_codes.data();
  } else {
    const at::Tensor absmax = at::zeros({n / kNf4Block}, at::TensorOptions().dtype(at::kFloat));
    auto* scales = absmax.mutable_data_ptr<float>();
    codes.resize(n / 2);
    if (!QuantizeNf4(n, x, codes.data(), scales)) return not_finite();
    if (format.nested) {
      matrix.nested = QuantizeScales(absmax);
      for (int64_t i = 0; i < absmax.numel(); ++i) scale_codes.push_back(ScaleCode(matrix.nested, i, scales[i]));
      matrix.scale_codes = scale_codes.data();
    } else {
      matrix.absmax.assign(scales, scales + absmax.numel());
    }
  }
  matrix.codes = codes.data();
  return DequantizeRows(matrix, 0, rows);
}

}  // namespace

WeightSource Requantized(const WeightSource& plain, const DecoderSpec& spec) {
  std::map<std::string, int64_t> quantized;  // how many matrices each is
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    if (parameter.quantized) quantized[parameter.name] = parameter.matrices;
  }
  WeightSource source = plain;
  for (SourceTensor& tensor : source.tensors) {
    if (quantized.count(tensor.name) > 0) tensor.dtype = at::kFloat;
  }
  struct Last {
    std::string name;
    at::Tensor values;  // float32
  };
  source.read = [plain, quantized, format = spec.quantization, last = std::make_shared<Last>()](
                    const SourceTensor& tensor, const Rectangle& r, const at::Tensor& out) -> absl::Status {
    for (const SourceTensor& stored : plain.tensors) {
      if (stored.name != tensor.name) continue;
      if (quantized.count(tensor.name) == 0) return plain.read(stored, r, out);
      if (last->name != tensor.name) {
        ASSIGN_OR_RETURN(const at::Tensor values, ReadWhole(plain.read, stored));
        std::vector<at::Tensor> matrices;
        for (const at::Tensor& matrix : values.to(at::kFloat).chunk(quantized.at(tensor.name))) {
          SourceTensor alone = tensor;
          alone.shape = matrix.sizes().vec();
          ASSIGN_OR_RETURN(at::Tensor back, ThereAndBack(alone, matrix.contiguous(), *format));
          matrices.push_back(std::move(back));
        }
        last->values = at::cat(matrices);
        last->name = tensor.name;
      }
      out.copy_(last->values.narrow(0, r.offset[0], r.size[0]).narrow(1, r.offset[1], r.size[1]));
      return absl::OkStatus();
    }
    return Error(ExitCode::kData, plain.description, ": has no ", tensor.name);
  };
  return source;
}

}  // namespace trireme
