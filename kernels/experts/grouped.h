// kernels/experts/grouped.h
// Products of rows that lie by expert with the matrices of their experts. Tensors and dtypes as in kernels/base/ops.h.
#ifndef TRIREME_KERNELS_EXPERTS_GROUPED_H_
#define TRIREME_KERNELS_EXPERTS_GROUPED_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/experts/chosen_rows.h"

namespace trireme {

// Where the rows of each expert begin; ends[e] is where the next one's do. Experts without rows are a normal case.
using ExpertOffsets = std::vector<int64_t>;  // [experts + 1]

// x [R, K], w [E N, K] -> y [R, N]: rows of expert e times its matrix, w's rows [e N, (e + 1) N), transposed.
at::Tensor GroupedMatmulTransposed(const ExpertRows& x, const at::Tensor& w, const ExpertOffsets& offsets);
// dy [R, N], w [E N, K] -> dy w [R, K].
at::Tensor GroupedMatmul(const ExpertRows& dy, const at::Tensor& w, const ExpertOffsets& offsets);
// accumulator [E N, K] (arithmetic type) += dy^T x of each expert; overwrite: =, zero for one without rows.
void AddGroupedOuterProducts(const ExpertRows& dy, const ExpertRows& x, const ExpertOffsets& offsets,
                             at::Tensor& accumulator, bool overwrite);

}  // namespace trireme

#endif  // TRIREME_KERNELS_EXPERTS_GROUPED_H_
