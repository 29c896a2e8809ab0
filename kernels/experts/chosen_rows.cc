#include "kernels/experts/chosen_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <cmath>
#include <cstring>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

template <typename C>
bool Above(C a, C b) {
  return std::isnan(a) ? !std::isnan(b) : a > b;
}

// Keeps the best seen so far in order; a later one goes behind its equals.
template <typename C>
void LargestOfRow(const C* scores, int64_t n, int64_t count, int64_t* best) {
  int64_t have = 0;
  for (int64_t e = 0; e < n; ++e) {
    if (have == count && !Above(scores[e], scores[best[have - 1]])) continue;
    int64_t at = have < count ? have++ : count - 1;
    for (; at > 0 && Above(scores[e], scores[best[at - 1]]); --at) best[at] = best[at - 1];
    best[at] = e;
  }
}

}  // namespace

at::Tensor LargestOfRows(const at::Tensor& scores, int64_t count) {
  if (scores.is_cuda()) {
    return std::get<1>(at::sort(scores, /*stable=*/true, /*dim=*/1, /*descending=*/true))
        .narrow(1, 0, count)
        .contiguous();
  }
  const int64_t rows = scores.size(0), n = scores.size(1);
  TRIREME_CHECK(count <= n, count, " of ", n, " scores");
  const at::Tensor all = scores.contiguous();
  at::Tensor best = at::empty({rows, count}, scores.options().dtype(at::kLong));
  const auto run = [&](auto type) {
    using C = decltype(type);
    ParallelRanges(rows, RowGrain(n), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        LargestOfRow(Data<C>(all) + r * n, n, count, Data<int64_t>(best) + r * count);
    });
  };
  if (scores.scalar_type() == at::kDouble) {
    run(double{});
  } else {
    TRIREME_CHECK(scores.scalar_type() == at::kFloat, "scores of dtype ", static_cast<int>(scores.scalar_type()));
    run(float{});
  }
  return best;
}

Grouping GroupStably(const int64_t* values, int64_t n, int64_t groups) {
  Grouping grouping;
  grouping.offsets.assign(static_cast<size_t>(groups) + 1, 0);
  for (int64_t i = 0; i < n; ++i) {
    TRIREME_CHECK(values[i] >= 0 && values[i] < groups, "group ", values[i], " of ", groups);
    ++grouping.offsets[static_cast<size_t>(values[i]) + 1];
  }
  for (size_t g = 1; g < grouping.offsets.size(); ++g) grouping.offsets[g] += grouping.offsets[g - 1];
  std::vector<int64_t> next = grouping.offsets;
  grouping.order.resize(static_cast<size_t>(n));
  grouping.place.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t place = next[static_cast<size_t>(values[i])]++;
    grouping.order[static_cast<size_t>(place)] = i;
    grouping.place[static_cast<size_t>(i)] = place;
  }
  return grouping;
}

at::Tensor TakeRows(const at::Tensor& x, const at::Tensor& order, int64_t per_token) {
  if (x.is_cuda()) return x.index_select(0, per_token == 1 ? order : at::div(order, per_token, "floor"));
  at::Tensor taken = at::empty({order.size(0), x.size(1)}, x.options());
  TakeRowsInto(x.contiguous(), order, per_token, taken);
  return taken;
}

void TakeRowsInto(const at::Tensor& x, const at::Tensor& order, int64_t per_token, const at::Tensor& taken) {
  const auto bytes = static_cast<size_t>(x.size(1)) * x.element_size();
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* to = static_cast<char*>(taken.mutable_data_ptr());
  const int64_t* choice = order.const_data_ptr<int64_t>();
  ParallelRanges(order.size(0), RowGrain(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + static_cast<size_t>(i) * bytes, from + static_cast<size_t>(choice[i] / per_token) * bytes,
                  bytes);
  });
}

at::Tensor ExpertRows::Part(int64_t begin, int64_t size) const {
  return order.defined() ? TakeRows(x, order.narrow(0, begin, size), per_token) : x.narrow(0, begin, size);
}

at::Tensor SumOfChoices(const at::Tensor& x, const at::Tensor& place, int64_t per_token) {
  if (x.is_cuda()) return cuda::SumOfChoices(x, place, per_token);
  const int64_t tokens = place.size(0) / per_token, width = x.size(1);
  at::Tensor sums = at::empty({tokens, width}, x.options());
  const int64_t* places = place.const_data_ptr<int64_t>();
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    ParallelRanges(tokens, RowGrain(width * per_token), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        LoopsFor<T>().sum_of_rows(per_token, places + t * per_token, width, Data<T>(x), Data<T>(sums) + t * width);
    });
  });
  return sums;
}

}  // namespace trireme
