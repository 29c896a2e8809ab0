#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

constexpr int64_t kFlatGrain = 65536;  // Elements per task, and per partial sum.

}  // namespace

double SquaredNorm(const at::Tensor& x) {
  if (x.is_cuda()) {
    at::Tensor sums = at::empty({2}, x.options().dtype(at::kDouble));
    cuda::SquaredNorms({x}, sums.narrow(0, 0, 1), sums.narrow(0, 1, 1));
    return HostCopy(sums).Wait().const_data_ptr<double>()[0];
  }
  const int64_t n = x.numel();
  const float* data = Data<float>(x);
  std::vector<double> partial((n + kFlatGrain - 1) / kFlatGrain);
  ParallelRanges(n, kFlatGrain, [&](int64_t begin, int64_t end) {
    partial[begin / kFlatGrain] = Loops().squared_norm(end - begin, data + begin);
  });
  double sum = 0;
  for (double part : partial) sum += part;
  return sum;
}

void SquaredNorms(const std::vector<at::Tensor>& tensors, at::Tensor squares, at::Tensor total) {
  if (total.is_cuda()) return cuda::SquaredNorms(tensors, squares, total);
  double sum = 0;
  for (size_t i = 0; i < tensors.size(); ++i) sum += squares.mutable_data_ptr<double>()[i] = SquaredNorm(tensors[i]);
  *total.mutable_data_ptr<double>() = sum;
}

void AddInto(at::Tensor& a, const at::Tensor& b) {
  TRIREME_CHECK(a.numel() == b.numel(), "sizes ", a.numel(), " and ", b.numel());
  if (a.is_cuda()) return cuda::AddInto(a, b);
  DispatchDtype(b.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    ParallelRanges(a.numel(), kFlatGrain, [&](int64_t begin, int64_t end) {
      if (a.scalar_type() == b.scalar_type()) {
        LoopsFor<T>().add(end - begin, Data<T>(a) + begin, Data<T>(b) + begin);
      } else {
        LoopsFor<T>().accumulate(end - begin, Data<C>(a) + begin, Data<T>(b) + begin);
      }
    });
  });
}

void CopyConverted(const at::Tensor& from, at::Tensor& to) {
  TRIREME_CHECK(from.numel() == to.numel(), "sizes ", from.numel(), " and ", to.numel());
  if (from.is_cuda() || to.is_cuda()) {
    to.copy_(from, /*non_blocking=*/true);
    return;
  }
  ParallelRanges(from.numel(), kFlatGrain, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    if (from.scalar_type() == to.scalar_type()) {
      const size_t size = from.element_size();
      std::memcpy(static_cast<char*>(to.data_ptr()) + begin * size,
                  static_cast<const char*>(from.data_ptr()) + begin * size, n * size);
    } else if (from.scalar_type() == at::kBFloat16) {
      Loops().bf16.widen(n, Data<Bf16>(from) + begin, Data<float>(to) + begin);
    } else {
      Loops().bf16.narrow(n, Data<float>(from) + begin, Data<Bf16>(to) + begin);
    }
  });
}

void SumInOrder(const at::Tensor& parts, at::Tensor& out) {
  const int64_t ranks = parts.size(0), n = parts.size(1);
  DispatchDtype(parts.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    const auto& loops = LoopsFor<T>();
    ParallelRanges(n, 4096, [&](int64_t begin, int64_t end) {
      C sum[4096];
      loops.widen(end - begin, Data<T>(parts) + begin, sum);
      for (int64_t r = 1; r < ranks; ++r) loops.accumulate(end - begin, sum, Data<T>(parts) + r * n + begin);
      if (out.scalar_type() == parts.scalar_type()) {
        loops.narrow(end - begin, sum, Data<T>(out) + begin);
      } else {
        std::memcpy(Data<C>(out) + begin, sum, (end - begin) * sizeof(C));
      }
    });
  });
}

}  // namespace trireme
