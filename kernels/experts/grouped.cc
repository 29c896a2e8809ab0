#include "kernels/experts/grouped.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/matrix/gemm.h"

namespace trireme {
namespace {

constexpr int64_t kRowBlock = 256;     // rows of an expert that one task takes: its matrix is packed once for them
constexpr int64_t kMatrixBlock = 256;  // rows of its matrix, where gradients of weights are made

// A piece of work for one thread.
struct GroupTask {
  int64_t expert, begin, size;
};

// Even blocks of each expert's rows, the largest first: threads take tasks as they become free.
std::vector<GroupTask> RowTasks(const ExpertOffsets& offsets) {
  std::vector<GroupTask> tasks;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e], blocks = (rows + kRowBlock - 1) / kRowBlock;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = offsets[e] + rows * i / blocks, end = offsets[e] + rows * (i + 1) / blocks;
      tasks.push_back({static_cast<int64_t>(e), begin, end - begin});
    }
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

// At most kRowBlock rows of one expert for a task on CPU, in the arithmetic type: where they lie, or a copy. All copies
// of a width are of one size, so that memory is found again whatever the loads are.
class TaskRows {
 public:
  explicit TaskRows(const ExpertRows& rows) : wide_(Widened(rows.x).contiguous(), rows.order, rows.per_token) {}

  // [size, width], packed.
  at::Tensor Part(int64_t begin, int64_t size) const {
    if (!wide_.order.defined()) return wide_.Part(begin, size);
    const at::Tensor taken = at::empty({kRowBlock, wide_.width()}, wide_.x.options()).narrow(0, 0, size);
    TakeRowsInto(wide_.x, wide_.order.narrow(0, begin, size), wide_.per_token, taken);
    return taken;
  }

 private:
  ExpertRows wide_;
};

// x [R, K] or [R, N], w [E N, K]: rows of each expert times its matrix, transposed (kYes: [R, N]) or not ([R, K]).
at::Tensor GroupedProduct(const ExpertRows& x, const at::Tensor& w, const ExpertOffsets& offsets, Transpose transpose) {
  const int64_t n = w.size(0) / (static_cast<int64_t>(offsets.size()) - 1), k = w.size(1);
  const int64_t inner = x.width(), outer = transpose == Transpose::kYes ? n : k;
  const std::vector<GroupTask> tasks = RowTasks(offsets);
  if (w.is_cuda()) {
    at::Tensor y = at::empty({x.rows(), outer}, x.x.options());
    for (const GroupTask& t : tasks) {
      const at::Tensor rows = x.Part(t.begin, t.size), matrix = w.narrow(0, t.expert * n, n);
      y.narrow(0, t.begin, t.size)
          .copy_(transpose == Transpose::kYes ? MatmulTransposed(rows, matrix) : Matmul(rows, matrix));
    }
    return y;
  }
  const at::Tensor matrices = Widened(w).contiguous();
  at::Tensor y = at::empty({x.rows(), outer}, matrices.options());
  InType(matrices, [&](auto type) {
    using C = decltype(type);
    const TaskRows rows(x);
    ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const GroupTask& t = tasks[static_cast<size_t>(i)];
      const at::Tensor part = rows.Part(t.begin, t.size);
      Gemm(Transpose::kNo, transpose, t.size, outer, inner, Data<C>(part), inner, Data<C>(matrices) + t.expert * n * k,
           k, /*add=*/false, Data<C>(y) + t.begin * outer, outer);
    });
  });
  return Narrowed(y, x.x.scalar_type());
}

}  // namespace

at::Tensor GroupedMatmulTransposed(const ExpertRows& x, const at::Tensor& w, const ExpertOffsets& offsets) {
  return GroupedProduct(x, w, offsets, Transpose::kYes);
}

at::Tensor GroupedMatmul(const ExpertRows& dy, const at::Tensor& w, const ExpertOffsets& offsets) {
  return GroupedProduct(dy, w, offsets, Transpose::kNo);
}

void AddGroupedOuterProducts(const ExpertRows& dy, const ExpertRows& x, const ExpertOffsets& offsets,
                             at::Tensor& accumulator, bool overwrite) {
  const int64_t experts = static_cast<int64_t>(offsets.size()) - 1, n = dy.width(), k = x.width();
  if (accumulator.is_cuda()) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t begin = offsets[static_cast<size_t>(e)], size = offsets[static_cast<size_t>(e) + 1] - begin;
      at::Tensor own = accumulator.narrow(0, e * n, n);
      if (size > 0) {
        AddOuterProduct(dy.Part(begin, size), x.Part(begin, size), own, overwrite);
      } else if (overwrite) {
        own.zero_();
      }
    }
    return;
  }
  // A thread makes some rows of an expert's gradient from all its tokens, so that each element is summed in one order.
  std::vector<GroupTask> tasks;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t row = 0; row < n; row += kMatrixBlock) tasks.push_back({e, row, std::min(kMatrixBlock, n - row)});
  }
  InType(accumulator, [&](auto type) {
    using C = decltype(type);
    const TaskRows d_rows(dy), rows(x);
    ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const GroupTask& t = tasks[static_cast<size_t>(i)];
      const int64_t begin = offsets[static_cast<size_t>(t.expert)],
                    size = offsets[static_cast<size_t>(t.expert) + 1] - begin;
      C* out = Data<C>(accumulator) + (t.expert * n + t.begin) * k;
      if (size == 0) {
        if (overwrite) std::fill(out, out + t.size * k, C(0));
        return;
      }
      for (int64_t row = 0; row < size; row += kRowBlock) {
        const int64_t some = std::min(kRowBlock, size - row);
        const at::Tensor d_part = d_rows.Part(begin + row, some), part = rows.Part(begin + row, some);
        Gemm(Transpose::kYes, Transpose::kNo, t.size, k, some, Data<C>(d_part) + t.begin, n, Data<C>(part), k,
             !overwrite || row > 0, out, k);
      }
    });
  });
}

}  // namespace trireme
