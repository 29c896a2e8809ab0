// kernels/experts/chosen_rows.h
// Which experts tokens choose, and the rows that travel because of it. A token's choices are neighbours: choice
// t x per_token + j is the j-th of token t. Tensors and dtypes as in kernels/base/ops.h.
#ifndef TRIREME_KERNELS_EXPERTS_CHOSEN_ROWS_H_
#define TRIREME_KERNELS_EXPERTS_CHOSEN_ROWS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace trireme {

// The columns of the `count` largest of each row of scores [t, E] (arithmetic type), largest first; equal ones by lower
// index, NaN above everything -> [t, count] int64.
at::Tensor LargestOfRows(const at::Tensor& scores, int64_t count);

// The order of n numbers in [0, groups) by value, equal ones in the order they have: a counting sort.
struct Grouping {
  std::vector<int64_t> order;    // [n]: place -> number
  std::vector<int64_t> place;    // [n]: number -> place
  std::vector<int64_t> offsets;  // [groups + 1]: where each group begins; a group may be empty
};
Grouping GroupStably(const int64_t* values, int64_t n, int64_t groups);

// Rows of x [t, W] in the order of choices [n] (int64, on x's device): row i is x's row order[i] / per_token.
at::Tensor TakeRows(const at::Tensor& x, const at::Tensor& order, int64_t per_token = 1);
// The same into `taken` [n, W], x and it contiguous on the CPU.
void TakeRowsInto(const at::Tensor& x, const at::Tensor& order, int64_t per_token, const at::Tensor& taken);
// Rows that lie by expert: a tensor's own, or those that TakeRows would take, which are taken where they are needed and
// are nowhere as a whole.
struct ExpertRows {
  at::Tensor x;      // [R, W], or [t, W] with an order
  at::Tensor order;  // [R] as for TakeRows; undefined: x's rows as they are
  int64_t per_token = 1;

  ExpertRows(at::Tensor rows) : x(std::move(rows)) {}  // NOLINT: rows as they are are rows
  ExpertRows(at::Tensor rows, at::Tensor in_order, int64_t choices)
      : x(std::move(rows)), order(std::move(in_order)), per_token(choices) {}
  int64_t rows() const { return order.defined() ? order.size(0) : x.size(0); }
  int64_t width() const { return x.size(1); }
  at::Tensor Part(int64_t begin, int64_t size) const;  // rows [begin, begin + size), packed or a view
  at::Tensor All() const { return Part(0, rows()); }
};

// The way back: rows x [n, W], choice c at row place[c] -> the sum over each token's choices, in their order and in the
// arithmetic type [t, W].
at::Tensor SumOfChoices(const at::Tensor& x, const at::Tensor& place, int64_t per_token);

}  // namespace trireme

#endif  // TRIREME_KERNELS_EXPERTS_CHOSEN_ROWS_H_
