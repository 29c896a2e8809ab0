// models/blocks/principal_factors.h
// The part of a matrix that its largest singular values make up (for PiSSA, arXiv 2404.02948).
#ifndef TRIREME_MODELS_BLOCKS_PRINCIPAL_FACTORS_H_
#define TRIREME_MODELS_BLOCKS_PRINCIPAL_FACTORS_H_

#include <ATen/core/Tensor.h>

namespace trireme {

struct Factors {
  at::Tensor a;  // [rank, columns]
  at::Tensor b;  // [rows, rank]
};

// b a is the best approximation of w [rows, columns] of that rank, up to what randomized subspace iteration (Halko,
// Martinsson, Tropp, arXiv 0909.4061) leaves; each factor carries the root of the singular values. In w's dtype
// (float32 or float64), on its device. The same w gives the same factors.
Factors PrincipalFactors(const at::Tensor& w, int64_t rank);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_PRINCIPAL_FACTORS_H_
