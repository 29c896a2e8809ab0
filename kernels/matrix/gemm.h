// kernels/matrix/gemm.h
// Matrix products on CPU memory, row-major, in the calling thread or over the thread pool. Arithmetic is in float32, or
// float64 for double operands; float32 products read bfloat16 operands where they lie.
//
// OWN products (kernels/cpu/products.h) are the default: an element of C is summed in an order that the inner size
// alone decides, so its bits are the same in a product of any number of rows and columns, on any number of threads.
// They depend on the instruction set only. The libraries can be chosen instead, and always do the products in double
// precision, which tests and small things need.
#ifndef TRIREME_KERNELS_MATRIX_GEMM_H_
#define TRIREME_KERNELS_MATRIX_GEMM_H_

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/base/element_math.h"
#include "launch/base/status.h"

namespace trireme {

enum class ProductLibrary { kOwn, kMkl, kOpenBlas };

// What multiplies in single precision from now on. Called before the first product, or by tests. Error: this build or
// processor does not have it.
absl::Status UseProducts(ProductLibrary library);
std::string ProductsName();  // what multiplies, for logs and benchmarks

enum class Transpose { kNo, kYes };

struct PackedRight;  // kernels/matrix/gemm_backend.h

// C [m, n] = op(A) op(B), or with `add` C + op(A) op(B), in the calling thread, where op(A) is [m, k] and op(B) [k, n].
// ld*: elements between rows as stored. A, B: float or Bf16, with C float; or all double.
template <typename A, typename B, typename C>
void Gemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a, int64_t lda,
          const B* b, int64_t ldb, bool add, C* c, int64_t ldc);

// The same product, split over the thread pool by blocks of C.
template <typename A, typename B, typename C>
void ParallelGemm(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const A* a,
                  int64_t lda, const B* b, int64_t ldb, bool add, C* c, int64_t ldc);

// C [m, m] = A A^T with A [m, k] in single precision: symmetric, so about half of the work, and the bits of the
// product.
void ParallelGram(int64_t m, int64_t k, const float* a, int64_t lda, float* c, int64_t ldc);

// op(B) of several products, prepared once. T: float, double.
template <typename T>
class RightOperand {
 public:
  RightOperand();
  ~RightOperand();

  // op(B) [k, n] is read now, or later where a library multiplies: it must stay as it is while this is used.
  void Set(Transpose transpose, int64_t k, int64_t n, const T* b, int64_t ldb);

  // C [m, n] = op(A) op(B), or with `add` C + op(A) op(B), of the first n columns and k rows of op(B).
  void Multiply(Transpose transpose_a, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool add, T* c,
                int64_t ldc) const;

 private:
  Transpose transpose_ = Transpose::kNo;
  int64_t ldb_ = 0;
  const T* b_ = nullptr;
  std::unique_ptr<PackedRight> packed_;  // of own products
};

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_GEMM_H_
