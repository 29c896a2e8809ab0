#include "kernels/experts/grouped.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/matrix/gemm.h"

namespace trireme {
namespace {

constexpr int64_t kRowBlock = 128;     // rows of an expert that one task takes
constexpr int64_t kMatrixBlock = 256;  // rows of its matrix, where gradients of weights are made

// A piece of work for one thread.
struct GroupTask {
  int64_t expert, begin, size;
};

// Blocks of each expert's rows, the largest first: threads take tasks as they become free.
std::vector<GroupTask> RowTasks(const ExpertOffsets& offsets) {
  std::vector<GroupTask> tasks;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    for (int64_t begin = offsets[e]; begin < offsets[e + 1]; begin += kRowBlock)
      tasks.push_back({static_cast<int64_t>(e), begin, std::min(kRowBlock, offsets[e + 1] - begin)});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const GroupTask& a, const GroupTask& b) { return a.size > b.size; });
  return tasks;
}

template <typename Body>
void InType(const at::Tensor& x, const Body& body) {
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using C = decltype(type);
    if constexpr (!std::is_same_v<C, Bf16>) body(C());
  });
}

// x [R, K] or [R, N], w [E N, K]: rows of each expert times its matrix, transposed (kYes: [R, N]) or not ([R, K]).
at::Tensor GroupedProduct(const at::Tensor& x, const at::Tensor& w, const ExpertOffsets& offsets, Transpose transpose) {
  const int64_t n = w.size(0) / (static_cast<int64_t>(offsets.size()) - 1), k = w.size(1);
  const int64_t inner = x.size(1), outer = transpose == Transpose::kYes ? n : k;
  const std::vector<GroupTask> tasks = RowTasks(offsets);
  if (x.is_cuda()) {
    at::Tensor y = at::empty({x.size(0), outer}, x.options());
    for (const GroupTask& t : tasks) {
      const at::Tensor rows = x.narrow(0, t.begin, t.size), matrix = w.narrow(0, t.expert * n, n);
      y.narrow(0, t.begin, t.size)
          .copy_(transpose == Transpose::kYes ? MatmulTransposed(rows, matrix) : Matmul(rows, matrix));
    }
    return y;
  }
  const at::Tensor rows = Widened(x).contiguous(), matrices = Widened(w).contiguous();
  at::Tensor y = at::empty({x.size(0), outer}, rows.options());
  InType(rows, [&](auto type) {
    using C = decltype(type);
    ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const GroupTask& t = tasks[static_cast<size_t>(i)];
      Gemm(Transpose::kNo, transpose, t.size, outer, inner, C(1), Data<C>(rows) + t.begin * inner, inner,
           Data<C>(matrices) + t.expert * n * k, k, C(0), Data<C>(y) + t.begin * outer, outer);
    });
  });
  return Narrowed(y, x.scalar_type());
}

}  // namespace

at::Tensor GroupedMatmulTransposed(const at::Tensor& x, const at::Tensor& w, const ExpertOffsets& offsets) {
  return GroupedProduct(x, w, offsets, Transpose::kYes);
}

at::Tensor GroupedMatmul(const at::Tensor& dy, const at::Tensor& w, const ExpertOffsets& offsets) {
  return GroupedProduct(dy, w, offsets, Transpose::kNo);
}

void AddGroupedOuterProducts(const at::Tensor& dy, const at::Tensor& x, const ExpertOffsets& offsets,
                             at::Tensor& accumulator, bool overwrite) {
  const int64_t experts = static_cast<int64_t>(offsets.size()) - 1, n = dy.size(1), k = x.size(1);
  if (dy.is_cuda()) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t begin = offsets[static_cast<size_t>(e)], size = offsets[static_cast<size_t>(e) + 1] - begin;
      at::Tensor own = accumulator.narrow(0, e * n, n);
      if (size > 0) {
        AddOuterProduct(dy.narrow(0, begin, size), x.narrow(0, begin, size), own, overwrite);
      } else if (overwrite) {
        own.zero_();
      }
    }
    return;
  }
  const at::Tensor d_rows = Widened(dy).contiguous(), rows = Widened(x).contiguous();
  // A thread makes some rows of an expert's gradient from all its tokens, so that each element is summed in one order.
  std::vector<GroupTask> tasks;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t row = 0; row < n; row += kMatrixBlock) tasks.push_back({e, row, std::min(kMatrixBlock, n - row)});
  }
  InType(rows, [&](auto type) {
    using C = decltype(type);
    ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const GroupTask& t = tasks[static_cast<size_t>(i)];
      const int64_t begin = offsets[static_cast<size_t>(t.expert)],
                    size = offsets[static_cast<size_t>(t.expert) + 1] - begin;
      C* out = Data<C>(accumulator) + (t.expert * n + t.begin) * k;
      if (size == 0) {
        if (overwrite) std::fill(out, out + t.size * k, C(0));
        return;
      }
      Gemm(Transpose::kYes, Transpose::kNo, t.size, k, size, C(1), Data<C>(d_rows) + begin * n + t.begin, n,
           Data<C>(rows) + begin * k, k, overwrite ? C(0) : C(1), out, k);
    });
  });
}

Grouping GroupStably(const int64_t* values, int64_t n, int64_t groups) {
  Grouping grouping;
  grouping.offsets.assign(static_cast<size_t>(groups) + 1, 0);
  for (int64_t i = 0; i < n; ++i) {
    TRIREME_CHECK(values[i] >= 0 && values[i] < groups, "group ", values[i], " of ", groups);
    ++grouping.offsets[static_cast<size_t>(values[i]) + 1];
  }
  for (size_t g = 1; g < grouping.offsets.size(); ++g) grouping.offsets[g] += grouping.offsets[g - 1];
  ExpertOffsets next = grouping.offsets;
  grouping.order.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) grouping.order[static_cast<size_t>(next[static_cast<size_t>(values[i])]++)] = i;
  return grouping;
}

}  // namespace trireme
