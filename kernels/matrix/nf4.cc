#include "kernels/matrix/nf4.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/mean.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

constexpr int64_t kTaskBlocks = 512;  // 32 K elements
constexpr int64_t kTaskElements = 32768;

// The lower of two equally near ones.
int Nearest(const std::array<float, 256>& map, float x) {
  const auto right = std::lower_bound(map.begin(), map.end(), x);
  if (right == map.begin()) return 0;
  if (right == map.end()) return 255;
  const int index = static_cast<int>(right - map.begin());
  return std::abs(x - map[index - 1]) <= std::abs(*right - x) ? index - 1 : index;
}

std::array<float, 256> MakeDynamicMap(bool with_signs) {
  std::array<float, 256> map = {};
  int count = 0;
  for (int i = 0; i < 7; ++i) {
    const int values = with_signs ? 1 << i : 2 << i;
    const at::Tensor ends = at::linspace(0.1, 1, values + 1, at::TensorOptions().dtype(at::kFloat));
    const float* boundaries = ends.const_data_ptr<float>();
    const auto power = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j < values; ++j) {
      const float value = power * ((boundaries[j] + boundaries[j + 1]) / 2.0f);
      map[count++] = value;
      if (with_signs) map[count++] = -value;
    }
  }
  map[count++] = 0;
  map[count++] = 1;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

bool QuantizeNf4(int64_t n, const float* x, uint8_t* packed, float* absmax) {
  TRIREME_CHECK(n % kNf4Block == 0, n, " elements are no whole blocks");
  std::atomic<bool> finite = true;
  ParallelRanges(n / kNf4Block, kTaskBlocks, [&](int64_t begin, int64_t end) {
    Loops().nf4_quantize(end - begin, x + begin * kNf4Block, packed + begin * (kNf4Block / 2), absmax + begin);
    for (int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(absmax[i])) finite = false;
    }
  });
  return finite;
}

const std::array<float, 256>& SignedDynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap(/*with_signs=*/true);
  return map;
}

const std::array<float, 256>& UnsignedDynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap(/*with_signs=*/false);
  return map;
}

NestedScales QuantizeScales(const at::Tensor& absmax) {
  NestedScales nested;
  nested.map = SignedDynamicMap();
  nested.offset = at::mean(absmax).item<float>();
  const int64_t n = absmax.numel();
  const float* values = absmax.const_data_ptr<float>();
  for (int64_t begin = 0; begin < n; begin += kNestedBlock) {
    float largest = 0;
    for (int64_t i = begin; i < std::min(n, begin + kNestedBlock); ++i)
      largest = std::max(largest, std::abs(values[i] - nested.offset));
    nested.absmax.push_back(largest);
  }
  return nested;
}

uint8_t ScaleCode(const NestedScales& nested, int64_t number, float absmax) {
  const float largest = nested.absmax[static_cast<size_t>(number / kNestedBlock)];
  return static_cast<uint8_t>(Nearest(nested.map, largest > 0 ? (absmax - nested.offset) * (1.0f / largest) : 0.0f));
}

void DequantizeNf4(const Nf4Blocks& b, at::Tensor out) {
  TRIREME_CHECK(out.numel() == b.blocks * kNf4Block, "sizes ", out.numel(), " and ", b.blocks * kNf4Block);
  if (out.is_cuda()) return cuda::DequantizeNf4(b, out);
  ParallelRanges(b.blocks, kTaskBlocks, [&](int64_t begin, int64_t end) {
    float scales[kTaskBlocks];
    int64_t number = NumberOf(b, begin), in_row = (b.skip + begin) % b.row_blocks;
    for (int64_t i = begin; i < end; ++i) {
      scales[i - begin] = ScaleOf(b, i, number);
      ++number;
      if (++in_row == b.row_blocks) {
        in_row = 0;
        number += b.row_stride - b.row_blocks;
      }
    }
    const uint8_t* packed = b.packed + begin * (kNf4Block / 2);
    if (out.scalar_type() == at::kFloat) {
      Loops().f32.nf4_dequantize(end - begin, packed, scales, b.type, Data<float>(out) + begin * kNf4Block);
    } else {
      Loops().bf16.nf4_dequantize(end - begin, packed, scales, b.type, Data<Bf16>(out) + begin * kNf4Block);
    }
  });
}

bool AddRowAbsmax(int64_t n, const float* x, int64_t first, int64_t columns, float* absmax) {
  bool finite = true;
  for (int64_t i = 0; i < n;) {
    const int64_t row = (first + i) / columns, end = std::min(n, (row + 1) * columns - first);
    float largest = absmax[row];
    for (; i < end; ++i) {
      const float magnitude = std::abs(RoundThroughHalf(x[i]));
      finite = finite && std::isfinite(magnitude);
      largest = std::max(largest, magnitude);
    }
    absmax[row] = largest;
  }
  return finite;
}

void QuantizeInt8Rows(int64_t n, const float* x, int64_t first, int64_t columns, const float* absmax, int8_t* codes) {
  ParallelRanges(n, kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // bitsandbytes' 127 / absmax is PyTorch's division of a number by a tensor, which multiplies with the reciprocal.
      const float scale = 1.0f / absmax[(first + i) / columns] * 127.0f;
      codes[i] = std::isfinite(scale) ? static_cast<int8_t>(std::nearbyint(RoundThroughHalf(x[i]) * scale)) : int8_t{0};
    }
  });
}

void DequantizeInt8Rows(const Int8Rows& rows, at::Tensor out) {
  TRIREME_CHECK(out.numel() == rows.n, "sizes ", out.numel(), " and ", rows.n);
  if (out.is_cuda()) return cuda::DequantizeInt8Rows(rows, out);
  ParallelRanges(rows.n, kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t row = (rows.first + i) / rows.columns, stop = std::min(end, (row + 1) * rows.columns - rows.first);
      if (out.scalar_type() == at::kFloat) {
        Loops().f32.int8_dequantize(stop - i, rows.codes + i, rows.absmax[row], Data<float>(out) + i);
      } else {
        Loops().bf16.int8_dequantize(stop - i, rows.codes + i, rows.absmax[row], Data<Bf16>(out) + i);
      }
      i = stop;
    }
  });
}

namespace {

// The code of x / scale, whose magnitude a block's scale keeps below 8: halfway between two codes the even one, 6 at
// most.
uint8_t Mxfp4Code(float x) {
  const float magnitude = std::abs(x);
  uint8_t code = 0;
  for (uint8_t k = 0; k < 7; ++k) {
    const float midpoint = (kMxfp4Codes[k] + kMxfp4Codes[k + 1]) / 2;
    if (magnitude > midpoint || (magnitude == midpoint && k % 2 == 1)) code = static_cast<uint8_t>(k + 1);
  }
  return static_cast<uint8_t>(code | (std::signbit(x) ? 8 : 0));
}

bool QuantizeMxfp4Block(const float* x, uint8_t* packed, uint8_t* scale) {
  float largest = 0;
  for (int64_t i = 0; i < kMxfp4Block; ++i) {
    if (!std::isfinite(x[i])) return false;
    largest = std::max(largest, std::abs(x[i]));
  }
  constexpr int kLargestExponent = 2;  // of 4 and 6
  const int exponent = largest == 0 ? -127 : std::max(-127, std::ilogb(largest) - kLargestExponent);
  *scale = static_cast<uint8_t>(exponent + 127);
  for (int64_t i = 0; i < kMxfp4Block; i += 2) {
    packed[i / 2] =
        static_cast<uint8_t>(Mxfp4Code(std::ldexp(x[i], -exponent)) << 4 | Mxfp4Code(std::ldexp(x[i + 1], -exponent)));
  }
  return true;
}

}  // namespace

bool QuantizeMxfp4(int64_t n, const float* x, uint8_t* packed, uint8_t* scales) {
  TRIREME_CHECK(n % kMxfp4Block == 0, n, " elements are no whole blocks");
  std::atomic<bool> finite = true;
  ParallelRanges(n / kMxfp4Block, kTaskBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (!QuantizeMxfp4Block(x + b * kMxfp4Block, packed + b * (kMxfp4Block / 2), scales + b)) finite = false;
    }
  });
  return finite;
}

void DequantizeMxfp4(const Mxfp4Blocks& b, at::Tensor out) {
  TRIREME_CHECK(out.numel() == b.blocks * kMxfp4Block, "sizes ", out.numel(), " and ", b.blocks * kMxfp4Block);
  if (out.is_cuda()) return cuda::DequantizeMxfp4(b, out);
  ParallelRanges(b.blocks, kTaskBlocks, [&](int64_t begin, int64_t end) {
    const uint8_t* packed = b.packed + begin * (kMxfp4Block / 2);
    if (out.scalar_type() == at::kFloat) {
      Loops().f32.mxfp4_dequantize(end - begin, packed, b.scales + begin, Data<float>(out) + begin * kMxfp4Block);
    } else {
      Loops().bf16.mxfp4_dequantize(end - begin, packed, b.scales + begin, Data<Bf16>(out) + begin * kMxfp4Block);
    }
  });
}

at::Tensor DequantizeRows(const QuantizedMatrix& matrix, int64_t begin, int64_t end) {
  const int64_t columns = matrix.shape[1], first = begin * columns, n = (end - begin) * columns;
  const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat);
  if (matrix.format.method == QuantizationFormat::kInt8) {
    at::Tensor values = at::empty({end - begin, columns}, floats);
    Int8Rows rows;
    rows.codes = reinterpret_cast<const int8_t*>(matrix.codes) + first;
    rows.absmax = matrix.absmax.data();
    rows.n = n;
    rows.first = first;
    rows.columns = columns;
    DequantizeInt8Rows(rows, values.view({-1}));
    return values;
  }
  if (matrix.format.method == QuantizationFormat::kMxfp4) {
    at::Tensor values = at::empty({end - begin, columns}, floats);
    DequantizeMxfp4({matrix.codes + first / 2, matrix.scale_codes + first / kMxfp4Block, n / kMxfp4Block},
                    values.view({-1}));
    return values;
  }
  // Whole blocks around the rows.
  const int64_t block = first / kNf4Block, skip = first - block * kNf4Block;
  Nf4Blocks blocks;
  blocks.blocks = (skip + n + kNf4Block - 1) / kNf4Block;
  blocks.packed = matrix.codes + block * (kNf4Block / 2);
  if (matrix.format.nested) {
    blocks.codes = matrix.scale_codes + block;
    blocks.nested_map = matrix.nested.map.data();
    blocks.nested_absmax = matrix.nested.absmax.data();
    blocks.nested_offset = matrix.nested.offset;
  } else {
    blocks.absmax = matrix.absmax.data() + block;
  }
  blocks.first_block = block;
  blocks.row_blocks = blocks.row_stride = std::max<int64_t>(1, blocks.blocks);
  blocks.type = matrix.type;
  at::Tensor values = at::empty({blocks.blocks * kNf4Block}, floats);
  DequantizeNf4(blocks, values);
  return values.narrow(0, skip, n).view({end - begin, columns});
}

}  // namespace trireme
