// kernels/matrix/nf4.h
// Weights in fewer bits: NF4, its scales in 8 bits, 8-bit rows and MXFP4; the first three compatible with what
// bitsandbytes computes on a CPU. Quantizing is done on the host while weights are loaded; dequantizing where the
// weights are, before a product.
#ifndef TRIREME_KERNELS_MATRIX_NF4_H_
#define TRIREME_KERNELS_MATRIX_NF4_H_

#include <ATen/core/Tensor.h>

#include <array>

#include "kernels/base/nf4_math.h"
#include "kernels/matrix/quantized_matrix.h"

namespace trireme {

// x [n], n a multiple of 64 -> packed [n / 2], absmax [n / 64]. False: there is a number that is not finite.
bool QuantizeNf4(int64_t n, const float* x, uint8_t* packed, float* absmax);

// The 256 values of the signed dynamic map (arXiv 1511.04561), ascending.
const std::array<float, 256>& SignedDynamicMap();
const std::array<float, 256>& UnsignedDynamicMap();  // of numbers that are not negative

// absmax [blocks of the whole matrix] float32 on the CPU.
NestedScales QuantizeScales(const at::Tensor& absmax);
// The code of one scale of the matrix's block `number`.
uint8_t ScaleCode(const NestedScales& nested, int64_t number, float absmax);

// out [blocks * 64], contiguous, float32, or bfloat16 where blocks.type is kBfloat16, on the device of the blocks.
void DequantizeNf4(const Nf4Blocks& blocks, at::Tensor out);

// Largest magnitudes of rows: absmax[r] = max(absmax[r], |x|) over elements of row r, of `n` elements from number
// `first` on of rows of `columns`. x is rounded to float16 first, as bitsandbytes does. False: not finite.
bool AddRowAbsmax(int64_t n, const float* x, int64_t first, int64_t columns, float* absmax);
// codes [n], with the absmax of every row.
void QuantizeInt8Rows(int64_t n, const float* x, int64_t first, int64_t columns, const float* absmax, int8_t* codes);
// out [rows.n], contiguous, float32 or bfloat16.
void DequantizeInt8Rows(const Int8Rows& rows, at::Tensor out);

// x [n], n a multiple of 32 -> packed [n / 2], scales [n / 32]: the largest magnitude of a block gets the largest
// exponent it can have, others the nearest code, ties to the even one, as OCP's conversion does. What is a block of
// MXFP4 already keeps its values. False: there is a number that is not finite.
bool QuantizeMxfp4(int64_t n, const float* x, uint8_t* packed, uint8_t* scales);
// out [blocks * 32], contiguous, float32 or bfloat16, on the device of the blocks.
void DequantizeMxfp4(const Mxfp4Blocks& blocks, at::Tensor out);

// Rows [begin, end) of a whole matrix on the CPU -> [end - begin, columns] float32.
at::Tensor DequantizeRows(const QuantizedMatrix& matrix, int64_t begin, int64_t end);

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_NF4_H_
