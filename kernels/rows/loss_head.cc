#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

// One row of logits [columns], which are the ids from options.first_id on: its lse and the target's logit.
template <typename C>
void RowStatistics(int64_t columns, const C* row, int64_t target, const LossHeadOptions& options, C* lse,
                   C* of_target) {
  const int64_t vocab = options.combine ? options.vocab_size : columns;
  TRIREME_CHECK(target < vocab, "target ", target, " outside the head's ", vocab, " rows");
  LoopsFor<C>().cross_entropy(columns, row, -1, lse);
  const int64_t id = target - options.first_id;
  *of_target = target >= 0 && id >= 0 && id < columns ? row[id] : C(0);
}

// The row -> its gradient.
template <typename C>
void RowGradient(int64_t columns, C* row, int64_t target, const LossHeadOptions& options, C lse) {
  const int64_t id = target - options.first_id;
  // Another part's target: beyond the columns, so that the softmax stays.
  const int64_t column = target < 0 ? -1 : id < 0 || id >= columns ? columns : id;
  LoopsFor<C>().cross_entropy_backward(columns, row, column, lse, static_cast<C>(options.scale),
                                       static_cast<C>(options.z_loss));
}

// Fills statistics [2, rows] (lse; the target's logit) and, with gradients, turns logits [rows, columns] into theirs.
template <typename C>
void CrossEntropyRows(at::Tensor& logits, const int64_t* targets, const LossHeadOptions& options,
                      at::Tensor& statistics) {
  const int64_t rows = logits.size(0), columns = logits.size(1);
  C* lse = Data<C>(statistics);
  C* x = Data<C>(logits);
  const auto each_row = [&](auto&& body) {
    ParallelRanges(rows, RowGrain(columns), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) body(r);
    });
  };
  // A row stays in cache between its two passes unless others must be heard in between.
  each_row([&](int64_t r) {
    RowStatistics<C>(columns, x + r * columns, targets[r], options, lse + r, lse + rows + r);
    if (options.with_gradient && !options.combine)
      RowGradient<C>(columns, x + r * columns, targets[r], options, lse[r]);
  });
  if (!options.combine) return;
  options.combine(statistics);
  if (options.with_gradient)
    each_row([&](int64_t r) { RowGradient<C>(columns, x + r * columns, targets[r], options, lse[r]); });
}

template <typename Body>
void EachPartOfRows(const at::Tensor& rows, const Body& body) {
  DispatchDtype(rows.scalar_type(), [&](auto type) {
    using C = decltype(type);
    if constexpr (!std::is_same_v<C, Bf16>) {
      ParallelRanges(rows.size(0), RowGrain(rows.size(1)), [&](int64_t begin, int64_t end) { body(C(), begin, end); });
    }
  });
}

// Applies the soft cap in place; copies the result to `copy` for CapLogitsBackward where there will be gradients.
void CapLogits(const LossHeadOptions& options, at::Tensor& logits, at::Tensor copy) {
  if (options.softcap <= 0) return;
  EachPartOfRows(logits, [&](auto type, int64_t begin, int64_t end) {
    using C = decltype(type);
    const int64_t columns = logits.size(1);
    LoopsFor<C>().softcap(end - begin, columns, columns, C(1), static_cast<C>(options.softcap),
                          Data<C>(logits) + begin * columns);
  });
  if (copy.defined()) copy.copy_(logits);
}

void CapLogitsBackward(const LossHeadOptions& options, const at::Tensor& capped, at::Tensor& gradient) {
  EachPartOfRows(gradient, [&](auto type, int64_t begin, int64_t end) {
    using C = decltype(type);
    const int64_t columns = gradient.size(1);
    LoopsFor<C>().softcap_backward(end - begin, columns, columns, C(1), static_cast<C>(options.softcap),
                                   Data<C>(capped) + begin * columns, Data<C>(gradient) + begin * columns);
  });
}

template <typename C>
void AddSums(const at::Tensor& statistics, const int64_t* targets, double* sums) {
  const int64_t rows = statistics.size(1);
  const C* lse = Data<C>(statistics);
  for (int64_t r = 0; r < rows; ++r) {
    if (targets[r] < 0) continue;
    sums[0] += static_cast<C>(lse[r] - lse[rows + r]);
    sums[1] += static_cast<double>(lse[r]) * lse[r];
  }
}

}  // namespace

LossHeadResult LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                        const LossHeadOptions& options, at::Tensor* d_weight, LossHeadAdapter* adapter) {
  if (x.is_cuda()) return cuda::LossHead(x, weight, targets, options, d_weight, adapter);
  const int64_t tokens = x.size(0);
  LossHeadResult result;
  result.sums = at::zeros({2}, x.options().dtype(at::kDouble));
  if (options.with_gradient) result.dx = at::empty(x.sizes(), x.options());
  if (tokens == 0 && options.overwrite) {
    if (d_weight != nullptr) d_weight->zero_();
    if (adapter != nullptr && adapter->d_b != nullptr) adapter->d_b->zero_();
  }
  const at::Tensor wide_weight = Widened(weight), wide_x = Widened(x);  // once, not once per chunk
  at::Tensor thin, b;
  if (adapter != nullptr) {
    thin = Widened(adapter->thin);
    b = Widened(adapter->b);
    if (options.with_gradient) adapter->d_thin = at::empty(thin.sizes(), thin.options());
  }
  // [chunk, vocab], arithmetic type
  const int64_t chunk = options.chunk_tokens;
  const at::Tensor chunk_logits = at::empty({chunk, weight.size(0)}, wide_x.options());
  const at::Tensor chunk_capped =
      options.softcap > 0 && options.with_gradient ? at::empty_like(chunk_logits) : at::Tensor();
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t rows = std::min(chunk, tokens - begin);
    const at::Tensor part = wide_x.narrow(0, begin, rows);
    at::Tensor logits = chunk_logits.narrow(0, 0, rows);
    const at::Tensor capped = chunk_capped.defined() ? chunk_capped.narrow(0, 0, rows) : at::Tensor();
    SetMatmulTransposed(logits, part, wide_weight);
    if (adapter != nullptr) AddMatmulTransposed(logits, thin.narrow(0, begin, rows), b);
    CapLogits(options, logits, capped);
    at::Tensor statistics = at::empty({2, rows}, logits.options());
    const int64_t* target = Data<int64_t>(targets) + begin;
    DispatchDtype(logits.scalar_type(), [&](auto type) {
      using C = decltype(type);
      if constexpr (!std::is_same_v<C, Bf16>) {
        CrossEntropyRows<C>(logits, target, options, statistics);
        AddSums<C>(statistics, target, Data<double>(result.sums));
      }
    });
    if (!options.with_gradient) continue;
    if (capped.defined()) CapLogitsBackward(options, capped, logits);
    at::Tensor dx = Matmul(logits, wide_weight);
    at::Tensor dx_part = result.dx.narrow(0, begin, rows);
    CopyConverted(dx, dx_part);
    const bool overwrite = options.overwrite && begin == 0;
    if (d_weight != nullptr) AddOuterProduct(logits, part, *d_weight, overwrite);
    if (adapter == nullptr) continue;
    adapter->d_thin.narrow(0, begin, rows).copy_(Matmul(logits, b));
    if (adapter->d_b != nullptr) AddOuterProduct(logits, thin.narrow(0, begin, rows), *adapter->d_b, overwrite);
  }
  return result;
}

}  // namespace trireme
