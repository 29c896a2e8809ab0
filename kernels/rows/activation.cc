#include "kernels/rows/activation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/square.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/GradMode.h>

#include "kernels/base/thread_pool.h"

namespace trireme {
namespace {

constexpr int64_t kActivationGrain = 32768;

void Forward(const at::Tensor& x, Activation activation, at::Tensor out) {
  switch (activation) {
    case Activation::kSilu:
      at::silu_out(out, x);
      break;
    case Activation::kGeluTanh:
      at::gelu_out(out, x, "tanh");
      break;
    case Activation::kGelu:
      at::gelu_out(out, x, "none");
      break;
    case Activation::kRelu:
      at::clamp_min_out(out, x, 0);
      break;
    case Activation::kSquaredRelu:
      at::clamp_min_out(out, x, 0);
      out.square_();
      break;
  }
}

void Backward(const at::Tensor& x, const at::Tensor& d_out, Activation activation, at::Tensor dx) {
  switch (activation) {
    case Activation::kSilu:
      at::silu_backward_out(dx, d_out, x);
      break;
    case Activation::kGeluTanh:
      at::gelu_backward_out(dx, d_out, x, "tanh");
      break;
    case Activation::kGelu:
      at::gelu_backward_out(dx, d_out, x, "none");
      break;
    case Activation::kRelu:
      at::threshold_backward_out(dx, d_out, x, 0);
      break;
    case Activation::kSquaredRelu:
      at::clamp_min_out(dx, x, 0);
      dx.mul_(2).mul_(d_out);
      break;
  }
}

}  // namespace

at::Tensor ActivationForward(const at::Tensor& x, Activation activation) {
  const at::NoGradGuard no_grad;
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (x.is_cuda()) {
    Forward(x, activation, out);
    return out;
  }
  const at::Tensor from = x.reshape({-1}), to = out.view({-1});
  ParallelRanges(x.numel(), kActivationGrain, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad_here;  // it is a thread's
    Forward(from.narrow(0, begin, end - begin), activation, to.narrow(0, begin, end - begin));
  });
  return out;
}

at::Tensor ActivationBackward(const at::Tensor& x, const at::Tensor& d_out, Activation activation) {
  const at::NoGradGuard no_grad;
  at::Tensor dx = at::empty(x.sizes(), x.options());
  if (x.is_cuda()) {
    Backward(x, d_out, activation, dx);
    return dx;
  }
  const at::Tensor from = x.reshape({-1}), gradient = d_out.reshape({-1}), to = dx.view({-1});
  ParallelRanges(x.numel(), kActivationGrain, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad_here;
    const int64_t size = end - begin;
    Backward(from.narrow(0, begin, size), gradient.narrow(0, begin, size), activation, to.narrow(0, begin, size));
  });
  return dx;
}

}  // namespace trireme
