// kernels/matrix/quantized_matrix.h
// A whole weight matrix in fewer bits, as files hold it. No tensors: formats read it without libtorch.
#ifndef TRIREME_KERNELS_MATRIX_QUANTIZED_MATRIX_H_
#define TRIREME_KERNELS_MATRIX_QUANTIZED_MATRIX_H_

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/base/nf4_math.h"

namespace trireme {

// How matrices are quantized.
struct QuantizationFormat {
  enum Method { kNf4, kInt8, kMxfp4 } method = kNf4;
  bool nested = true;  // NF4: scales in 8 bits too
  bool operator==(const QuantizationFormat& other) const {
    return method == other.method && (method != kNf4 || nested == other.nested);
  }
};

// How the scales of a whole NF4 matrix are quantized.
struct NestedScales {
  std::array<float, 256> map = {};
  std::vector<float> absmax;  // one for 256 scales
  float offset = 0;
};

// Pointers are into memory of someone else (a mapped file).
struct QuantizedMatrix {
  QuantizationFormat format;
  std::vector<int64_t> shape;            // [rows, columns]
  const uint8_t* codes = nullptr;        // NF4, MXFP4: two in a byte, row-major; INT8: int8, row-major
  const uint8_t* scale_codes = nullptr;  // NF4, nested: one for 64 elements; MXFP4: one for 32, which are of one row
  NestedScales nested;                   // NF4, nested
  std::vector<float> absmax;             // NF4, not nested: one for 64 elements; INT8: one for a row
  ValueType type = ValueType::kFloat32;  // NF4: what values are rounded to
};

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_QUANTIZED_MATRIX_H_
