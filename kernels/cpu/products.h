// kernels/cpu/products.h
// The inner loops of single-precision matrix products: single-threaded, raw pointers. products.cc is compiled once per
// instruction set, as loops.cc is; Products() picks the same one as Loops().
//
// A product C = A B is cut into tiles of at most tile_rows x tile_columns elements of C, which are held in registers
// while k runs (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Operands are read
// from panels: a left panel holds tile_rows rows of A, a right panel tile_columns columns of B, k after k, so that what
// a step over k needs lies together. Each element is summed by one chain of multiply-adds in the order of k, whatever
// tile it is in: its bits do not depend on the sizes of C.
#ifndef TRIREME_KERNELS_CPU_PRODUCTS_H_
#define TRIREME_KERNELS_CPU_PRODUCTS_H_

#include <stdint.h>

#include "kernels/base/element_math.h"

namespace trireme {

// Makes panels, one after another, of `lines` rows of A or columns of B: element (line, p) is from[line * stride + p]
// where k is contiguous, else from[p * stride + line]. Lines that the last panel lacks become zeros. `to` has
// kPanelSlack elements more than panels * k * width.
template <typename T>
using PackPanels = void (*)(bool k_contiguous, int64_t lines, int64_t k, const T* from, int64_t stride, float* to);

constexpr int64_t kPanelSlack = 16;

// For at most most_few_rows rows of A, whose panels of B would be used once: B is read where it lies, transposed in
// registers. c [rows, n] = A B, or with `add` c + A B, where row r of A is left + r * lda and column j of B right + j *
// ldb, both with k contiguous. The bits are those of tiles.
template <typename T>
using MultiplyFewRows = void (*)(int64_t rows, int64_t n, int64_t k, const float* left, int64_t lda, const T* right,
                                 int64_t ldb, bool add, float* c, int64_t ldc);

// What reads operands stored as T.
template <typename T>
struct TypedProducts {
  PackPanels<T> pack_left, pack_right;
  MultiplyFewRows<T> few_rows;
};

struct CpuProducts {
  int64_t tile_rows, tile_columns, most_few_rows;
  TypedProducts<float> f32;
  TypedProducts<Bf16> bf16;
  // c [rows, columns] = left right, or with `add` c + left right; rows <= tile_rows, columns <= tile_columns. left is a
  // panel.
  void (*tile)(int64_t k, const float* left, const float* right, int64_t rows, int64_t columns, bool add, float* c,
               int64_t ldc);
  // The same with rows of A as they lie, lda apart.
  void (*tile_of_rows)(int64_t k, const float* left, int64_t lda, const float* right, int64_t rows, int64_t columns,
                       bool add, float* c, int64_t ldc);

  const TypedProducts<float>& Of(float) const { return f32; }
  const TypedProducts<Bf16>& Of(Bf16) const { return bf16; }
};

const CpuProducts& Products();

const CpuProducts& PortableProducts();
const CpuProducts& Avx2Products();
const CpuProducts& Avx512Products();

}  // namespace trireme

#endif  // TRIREME_KERNELS_CPU_PRODUCTS_H_
