// kernels/matrix/gemm_backend.h
// What kernels/matrix/gemm.h chooses from.
#ifndef TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_
#define TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_

#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "kernels/cpu/products.h"
#include "kernels/matrix/gemm.h"

namespace trireme {

// Gemm() of one library, in the calling thread alone.
template <typename T>
using GemmFunction = void (*)(Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k, const T* a,
                              int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc);

struct GemmBackend {
  std::string description;  // with version
  GemmFunction<float> single = nullptr;
  GemmFunction<double> twofold = nullptr;
};

GemmBackend OpenBlasBackend();  // of the wheel scipy-openblas32
GemmBackend LibtorchBackend();  // what libtorch was linked with
bool LibtorchHasMkl();

// ---- Own products (gemm_own.cc), with the inner loops `p` ----
template <typename A, typename B>
void OwnGemm(const CpuProducts& p, Transpose transpose_a, Transpose transpose_b, int64_t m, int64_t n, int64_t k,
             const A* a, int64_t lda, const B* b, int64_t ldb, bool add, float* c, int64_t ldc);

// Memory of panels, from a cache line's beginning: vectors of a panel then lie within one. It grows and is kept.
class PanelMemory {
 public:
  float* Take(int64_t elements) {
    if (elements > size_) {
      memory_.reset(new (std::align_val_t(64)) float[static_cast<size_t>(elements)]);
      size_ = elements;
    }
    return memory_.get();
  }
  float* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  std::unique_ptr<float[], Free> memory_;
  int64_t size_ = 0;
};

// op(B) [k, n] as panels.
struct PackedRight {
  int64_t k = 0, n = 0;
  PanelMemory panels;
  void Resize(const CpuProducts& p, int64_t new_k, int64_t new_n);
};
// Columns [first, end) of op(B), which starts at b; first and end are multiples of tile_columns, or the latter is n.
template <typename B>
void PackRight(const CpuProducts& p, Transpose transpose, const B* b, int64_t ldb, int64_t first, int64_t end,
               PackedRight* packed);
// A product with its columns from `first` on, a multiple of tile_columns, and its first k rows. packed.k decides the
// order of sums.
template <typename A>
void OwnGemm(const CpuProducts& p, Transpose transpose_a, int64_t m, int64_t n, int64_t k, const A* a, int64_t lda,
             const PackedRight& packed, int64_t first, bool add, float* c, int64_t ldc);

// How C is cut into tasks: pieces of so many rows and columns.
struct ProductPieces {
  int64_t rows, columns;
};
ProductPieces CutProduct(const CpuProducts& p, int64_t m, int64_t n, int64_t k, int64_t threads);

}  // namespace trireme

#endif  // TRIREME_KERNELS_MATRIX_GEMM_BACKEND_H_
