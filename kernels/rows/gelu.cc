#include "kernels/rows/gelu.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <c10/core/GradMode.h>

#include "kernels/base/thread_pool.h"

namespace trireme {
namespace {

constexpr int64_t kGeluGrain = 32768;

const char* Approximation(Gelu kind) { return kind == Gelu::kErf ? "none" : "tanh"; }

}  // namespace

at::Tensor GeluForward(const at::Tensor& x, Gelu kind) {
  const at::NoGradGuard no_grad;
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (x.is_cuda()) return at::gelu_out(out, x, Approximation(kind));
  const at::Tensor from = x.reshape({-1}), to = out.view({-1});
  ParallelRanges(x.numel(), kGeluGrain, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad_here;  // it is a thread's
    at::Tensor part = to.narrow(0, begin, end - begin);
    at::gelu_out(part, from.narrow(0, begin, end - begin), Approximation(kind));
  });
  return out;
}

at::Tensor GeluBackward(const at::Tensor& x, const at::Tensor& d_out, Gelu kind) {
  const at::NoGradGuard no_grad;
  at::Tensor dx = at::empty(x.sizes(), x.options());
  if (x.is_cuda()) return at::gelu_backward_out(dx, d_out, x, Approximation(kind));
  const at::Tensor from = x.reshape({-1}), gradient = d_out.reshape({-1}), to = dx.view({-1});
  ParallelRanges(x.numel(), kGeluGrain, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad_here;
    const int64_t size = end - begin;
    at::Tensor part = to.narrow(0, begin, size);
    at::gelu_backward_out(part, gradient.narrow(0, begin, size), from.narrow(0, begin, size), Approximation(kind));
  });
  return dx;
}

}  // namespace trireme
