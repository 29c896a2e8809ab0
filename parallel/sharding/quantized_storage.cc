#include "parallel/sharding/quantized_storage.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "kernels/matrix/nf4.h"

namespace trireme {
namespace {

constexpr int64_t kReadElements = int64_t{1} << 20;  // at a time; whole blocks

bool FullRows(const std::vector<int64_t>& shape, const Rectangle& r) { return r.size[1] == shape[1]; }

// Elements that share a scale in a piece; with 8-bit rows none does.
int64_t BlockOf(QuantizationFormat format) {
  return format.method == QuantizationFormat::kMxfp4 ? kMxfp4Block : kNf4Block;
}
int64_t ScaleBytes(QuantizationFormat format) {
  return format.method == QuantizationFormat::kMxfp4 || format.nested ? 1 : sizeof(float);
}

int64_t MatrixNumel(const std::vector<int64_t>& shape) { return shape[0] * shape[1]; }

// values [n] on the CPU become the largest of the group's.
void MaxOver(ProcessGroup* group, at::Device device, at::Tensor& values) {
  if (group == nullptr || group->size() == 1) return;
  at::Tensor moved = values.to(device);
  group->AllReduce(moved, ReduceOp::kMax).Wait();
  if (moved.data_ptr() != values.data_ptr()) values.copy_(moved);
}

at::Tensor OnDevice(const float* values, size_t n, at::Device device) {
  const auto count = static_cast<int64_t>(n);
  const at::Tensor host =
      at::from_blob(const_cast<float*>(values), {count}, at::TensorOptions().dtype(at::kFloat)).clone();
  return host.to(device);
}

}  // namespace

DequantizedValues::DequantizedValues(at::ScalarType compute, at::Device device)
    // Products on a CPU are made in float32: bfloat16 values would be converted once more.
    : options_(at::TensorOptions().dtype(device.is_cpu() ? at::kFloat : compute).device(device)) {
  TRIREME_CHECK(compute == at::kFloat || compute == at::kBFloat16, "quantized weights in ", c10::toString(compute));
}

at::Tensor DequantizedValues::Take(int64_t numel) {
  if (!values_.defined() || values_.numel() < numel) {
    values_.reset();
    values_ = at::empty({numel}, options_);
  }
  return values_.narrow(0, 0, numel);
}

QuantizedStorage::QuantizedStorage(QuantizationFormat format, std::vector<Matrix> matrices, int64_t numel, int pieces,
                                   at::Device device)
    : format_(format),
      matrices_(std::move(matrices)),
      sides_(matrices_.size()),
      piece_numel_(numel / pieces),
      pieces_(pieces),
      device_(device) {
  piece_bytes_ = StoredBytes(format_, piece_numel_);
  // All ranks keep as much from the start, so that memory does not depend on what was loaded.
  for (size_t i = 0; i < matrices_.size(); ++i) {
    if (format_.method == QuantizationFormat::kInt8) {
      sides_[i].row_absmax =
          at::zeros({matrices_[i].rectangle.size[0]}, at::TensorOptions().dtype(at::kFloat)).to(device_);
    } else if (format_.method == QuantizationFormat::kNf4 && format_.nested) {
      NestedScales none;
      none.absmax.resize((MatrixNumel(matrices_[i].shape) / kNf4Block + kNestedBlock - 1) / kNestedBlock);
      SetNested(&sides_[i], none);
    }
  }
}

absl::Status QuantizedStorage::Check(QuantizationFormat format, const std::vector<int64_t>& shape, const Rectangle& r) {
  if (shape.size() != 2) return Error(ExitCode::kConfig, "only matrices can be quantized");
  if (format.method == QuantizationFormat::kInt8 || r.numel() == 0) return absl::OkStatus();
  const bool mxfp4 = format.method == QuantizationFormat::kMxfp4;
  const int64_t block = BlockOf(format);
  const bool whole_blocks = FullRows(shape, r)
                                ? r.offset[0] * shape[1] % block == 0 && r.numel() % block == 0
                                : shape[1] % block == 0 && r.offset[1] % block == 0 && r.size[1] % block == 0;
  // Blocks of MXFP4 are those of rows.
  if (whole_blocks && MatrixNumel(shape) % block == 0 && (!mxfp4 || shape[1] % block == 0)) return absl::OkStatus();
  return Error(ExitCode::kConfig, mxfp4 ? "MXFP4" : "NF4", " blocks of ", block, " elements do not fit the part ",
               r.ToString(), " of a ", shape[0], " x ", shape[1], " matrix; ",
               r.numel() < MatrixNumel(shape) ? "use fewer tensor ranks, or " : "",
               "name it in model.quantization.skip_modules");
}

int64_t QuantizedStorage::StoredBytes(QuantizationFormat format, int64_t numel) {
  if (format.method == QuantizationFormat::kInt8) return numel;
  return numel / 2 + numel / BlockOf(format) * ScaleBytes(format);
}

int64_t QuantizedStorage::SideBytes() const {
  int64_t bytes = 0;
  for (const Side& side : sides_) {
    for (const at::Tensor* tensor : {&side.nested_map, &side.nested_absmax, &side.row_absmax})
      bytes += tensor->defined() ? static_cast<int64_t>(tensor->nbytes()) : 0;
  }
  return bytes;
}

QuantizedStorage::Numbering QuantizedStorage::NumberingOf(const Matrix& m) const {
  const Rectangle& r = m.rectangle;
  if (FullRows(m.shape, r)) {
    const int64_t blocks = std::max<int64_t>(1, r.numel() / kNf4Block);
    return {r.offset[0] * m.shape[1] / kNf4Block, blocks, blocks};
  }
  return {(r.offset[0] * m.shape[1] + r.offset[1]) / kNf4Block, r.size[1] / kNf4Block, m.shape[1] / kNf4Block};
}

int64_t QuantizedStorage::CodeByte(int64_t element) const {
  return format_.method == QuantizationFormat::kInt8 ? element : element / 2;
}
int64_t QuantizedStorage::ScaleByte(int64_t element) const {
  return piece_numel_ / 2 + element / BlockOf(format_) * ScaleBytes(format_);
}

void QuantizedStorage::SetNested(Side* side, const NestedScales& nested) const {
  side->nested_offset = nested.offset;
  side->nested_map = OnDevice(nested.map.data(), nested.map.size(), device_);
  side->nested_absmax = OnDevice(nested.absmax.data(), nested.absmax.size(), device_);
}

void QuantizedStorage::Dequantize(const at::Tensor& gathered, int matrix, at::Tensor out) const {
  const Matrix& m = matrices_[matrix];
  const Side& side = sides_[matrix];
  const auto* bytes = static_cast<const uint8_t*>(gathered.const_data_ptr());
  const int64_t end = m.offset + m.rectangle.numel();
  const Numbering numbering = NumberingOf(m);
  for (int64_t at = m.offset; at < end;) {
    const int64_t piece = at / piece_numel_, stop = std::min(end, (piece + 1) * piece_numel_), n = stop - at;
    const uint8_t* base = bytes + piece * piece_bytes_;
    const int64_t element = at - piece * piece_numel_;
    const at::Tensor part = out.narrow(0, at - m.offset, n);
    if (format_.method == QuantizationFormat::kInt8) {
      Int8Rows rows;
      rows.codes = reinterpret_cast<const int8_t*>(base) + element;
      rows.absmax = side.row_absmax.const_data_ptr<float>();
      rows.n = n;
      rows.first = at - m.offset;
      rows.columns = m.rectangle.size[1];
      DequantizeInt8Rows(rows, part);
    } else if (format_.method == QuantizationFormat::kMxfp4) {
      DequantizeMxfp4({base + CodeByte(element), base + ScaleByte(element), n / kMxfp4Block}, part);
    } else {
      Nf4Blocks blocks;
      blocks.packed = base + CodeByte(element);
      if (format_.nested) {
        blocks.codes = base + ScaleByte(element);
        blocks.nested_map = side.nested_map.const_data_ptr<float>();
        blocks.nested_absmax = side.nested_absmax.const_data_ptr<float>();
        blocks.nested_offset = side.nested_offset;
      } else {
        blocks.absmax = reinterpret_cast<const float*>(base + ScaleByte(element));
      }
      blocks.blocks = n / kNf4Block;
      blocks.first_block = numbering.first_block;
      blocks.skip = (at - m.offset) / kNf4Block;
      blocks.row_blocks = numbering.row_blocks;
      blocks.row_stride = numbering.row_stride;
      blocks.type = side.type;
      DequantizeNf4(blocks, part);
    }
    at = stop;
  }
}

absl::Status QuantizedStorage::QuantizeNf4(int matrix, int64_t begin, int64_t end, int64_t own_begin,
                                           const Groups& groups, const Reader& read, uint8_t* own) {
  const Matrix& m = matrices_[matrix];
  const Numbering numbering = NumberingOf(m);
  // The scales of the whole matrix, by block number: nested ones depend on all of them. Others' are 0 for now.
  const int64_t own_blocks = (end - begin) / kNf4Block;
  const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat);
  at::Tensor all = at::zeros({format_.nested ? MatrixNumel(m.shape) / kNf4Block : 0}, floats);
  at::Tensor values = at::empty({std::min(kReadElements, std::max<int64_t>(0, end - begin))}, floats);
  std::vector<float> absmax(static_cast<size_t>(std::max<int64_t>(0, own_blocks)));
  absl::Status status;
  for (int64_t at = begin; at < end && status.ok(); at += kReadElements) {
    const int64_t n = std::min(kReadElements, end - at);
    float* data = values.mutable_data_ptr<float>();
    float* scales = absmax.data() + (at - begin) / kNf4Block;
    status = read(matrix, at - m.offset, at - m.offset + n, data);
    if (status.ok() && !trireme::QuantizeNf4(n, data, own + CodeByte(at - own_begin), scales))
      status = Error(ExitCode::kData, "holds numbers that are not finite");
  }
  const int64_t first = (begin - m.offset) / kNf4Block;
  if (!format_.nested) {
    std::memcpy(own + ScaleByte(begin - own_begin), absmax.data(), absmax.size() * sizeof(float));
    return status;
  }
  float* numbered = all.mutable_data_ptr<float>();
  if (status.ok()) {
    for (int64_t i = 0; i < own_blocks; ++i) numbered[numbering.Of(first + i)] = absmax[i];
  }
  MaxOver(groups.tensor, device_, all);
  MaxOver(groups.shard, device_, all);
  const NestedScales nested = QuantizeScales(all);
  SetNested(&sides_[matrix], nested);
  uint8_t* codes = own + ScaleByte(begin - own_begin);
  for (int64_t i = 0; i < own_blocks; ++i) codes[i] = ScaleCode(nested, numbering.Of(first + i), absmax[i]);
  return status;
}

absl::Status QuantizedStorage::QuantizeRows(int matrix, int64_t begin, int64_t end, int64_t own_begin,
                                            const Groups& groups, const Reader& read, uint8_t* own) {
  const Matrix& m = matrices_[matrix];
  const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat);
  const int64_t columns = m.rectangle.size[1];
  at::Tensor absmax = at::zeros({m.rectangle.size[0]}, floats);
  at::Tensor values = at::empty({std::min(kReadElements, std::max<int64_t>(0, end - begin))}, floats);
  float *scales = absmax.mutable_data_ptr<float>(), *data = values.mutable_data_ptr<float>();
  absl::Status status;
  const auto each = [&](auto&& use) {
    for (int64_t at = begin; at < end && status.ok(); at += kReadElements) {
      const int64_t n = std::min(kReadElements, end - at);
      status = read(matrix, at - m.offset, at - m.offset + n, data);
      if (status.ok()) use(at, n);
    }
  };
  each([&](int64_t at, int64_t n) {
    if (!AddRowAbsmax(n, data, at - m.offset, columns, scales))
      status = Error(ExitCode::kData, "holds numbers that float16 cannot express");
  });
  // Tensor ranks with other rows have other scales.
  if (!FullRows(m.shape, m.rectangle)) MaxOver(groups.tensor, device_, absmax);
  MaxOver(groups.shard, device_, absmax);
  each([&](int64_t at, int64_t n) {
    QuantizeInt8Rows(n, data, at - m.offset, columns, scales,
                     reinterpret_cast<int8_t*>(own + CodeByte(at - own_begin)));
  });
  sides_[matrix].row_absmax = absmax.to(device_);
  return status;
}

absl::Status QuantizedStorage::QuantizeMxfp4(int matrix, int64_t begin, int64_t end, int64_t own_begin,
                                             const Reader& read, uint8_t* own) {
  const int64_t offset = matrices_[matrix].offset;
  std::vector<float> values(static_cast<size_t>(std::min(kReadElements, end - begin)));
  for (int64_t at = begin; at < end; at += kReadElements) {
    const int64_t n = std::min(kReadElements, end - at);
    RETURN_IF_ERROR(read(matrix, at - offset, at - offset + n, values.data()));
    if (!trireme::QuantizeMxfp4(n, values.data(), own + CodeByte(at - own_begin), own + ScaleByte(at - own_begin)))
      return Error(ExitCode::kData, "holds numbers that are not finite");
  }
  return absl::OkStatus();
}

absl::Status QuantizedStorage::Quantize(int matrix, int64_t own_begin, int64_t own_numel, ValueType type,
                                        const Groups& groups, const Reader& read, at::Tensor own) {
  const Matrix& m = matrices_[matrix];
  const int64_t begin = std::max(m.offset, own_begin);
  const int64_t end = std::max(begin, std::min(m.offset + m.rectangle.numel(), own_begin + own_numel));
  at::Tensor host = own.cpu();
  auto* bytes = static_cast<uint8_t*>(host.mutable_data_ptr());
  sides_[matrix].type = type;
  absl::Status status;
  if (format_.method == QuantizationFormat::kNf4) {
    status = QuantizeNf4(matrix, begin, end, own_begin, groups, read, bytes);
  } else if (format_.method == QuantizationFormat::kMxfp4) {
    status = QuantizeMxfp4(matrix, begin, end, own_begin, read, bytes);
  } else {
    status = QuantizeRows(matrix, begin, end, own_begin, groups, read, bytes);
  }
  if (!own.is_cpu()) own.copy_(host);
  return status;
}

void QuantizedStorage::Take(int matrix, int64_t own_begin, int64_t own_numel, const QuantizedMatrix& whole,
                            at::Tensor own) {
  const Matrix& m = matrices_[matrix];
  Side& side = sides_[matrix];
  TRIREME_CHECK(format_.method != QuantizationFormat::kMxfp4, "MXFP4 is made of values");
  TRIREME_CHECK(whole.format == format_ && whole.shape == m.shape, "a matrix of another format or shape");
  const Rectangle& r = m.rectangle;
  const int64_t begin = std::max(m.offset, own_begin);
  const int64_t end = std::min(m.offset + r.numel(), own_begin + own_numel);
  at::Tensor host = own.cpu();
  auto* bytes = static_cast<uint8_t*>(host.mutable_data_ptr());
  const bool nf4 = format_.method == QuantizationFormat::kNf4;
  // Runs that are contiguous in the whole matrix.
  for (int64_t at = begin; at < end;) {
    const int64_t index = at - m.offset, row = index / r.size[1], column = index % r.size[1];
    const int64_t n = FullRows(m.shape, r) ? end - at : std::min(end - at, r.size[1] - column);
    const int64_t from = (r.offset[0] + row) * m.shape[1] + r.offset[1] + column;
    std::memcpy(bytes + CodeByte(at - own_begin), whole.codes + CodeByte(from), static_cast<size_t>(CodeByte(n)));
    if (nf4) {
      uint8_t* scales = bytes + ScaleByte(at - own_begin);
      const int64_t block = from / kNf4Block, blocks = n / kNf4Block;
      if (format_.nested) {
        std::memcpy(scales, whole.scale_codes + block, static_cast<size_t>(blocks));
      } else {
        std::memcpy(scales, whole.absmax.data() + block, static_cast<size_t>(blocks) * sizeof(float));
      }
    }
    at += n;
  }
  if (!own.is_cpu()) own.copy_(host);
  side.type = whole.type;
  if (nf4 && format_.nested) SetNested(&side, whole.nested);
  if (!nf4) side.row_absmax = OnDevice(whole.absmax.data() + r.offset[0], static_cast<size_t>(r.size[0]), device_);
}

}  // namespace trireme
