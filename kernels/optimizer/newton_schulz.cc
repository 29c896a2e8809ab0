#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/norm.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"

namespace trireme {
namespace {

constexpr int64_t kCombineGrain = 65536;

// On the CPU numbers stay float32 tensors: a product of bfloat16 numbers is summed in float32, added to, and rounded
// once.
void RoundTo(at::ScalarType type, at::Tensor& x) {
  if (type == at::kBFloat16) x = Widened(Narrowed(x, type));
}

// a * x + b * sum, rounded.
at::Tensor Combined(double a, const at::Tensor& x, double b, at::Tensor sum, at::ScalarType type) {
  const float* from = Data<float>(x);
  float* to = Data<float>(sum);
  const auto of_x = static_cast<float>(a), of_sum = static_cast<float>(b);
  ParallelRanges(sum.numel(), kCombineGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = of_x * from[i] + of_sum * to[i];
  });
  RoundTo(type, sum);
  return sum;
}

at::Tensor IterateOnCpu(at::Tensor x, const NewtonSchulzRule& rule) {
  RoundTo(rule.type, x);
  auto norm = static_cast<float>(std::sqrt(SquaredNorm(x)));
  if (rule.type == at::kBFloat16) norm = ToFloat(RoundToBf16(norm));
  const float inverse = 1.0F / std::max(norm, static_cast<float>(rule.eps));
  float* data = Data<float>(x);
  ParallelRanges(x.numel(), kCombineGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[i] *= inverse;
  });
  RoundTo(rule.type, x);
  for (int step = 0; step < rule.steps; ++step) {
    at::Tensor gram = Gram(x);
    RoundTo(rule.type, gram);
    // gram is symmetric, so its square is its own gram.
    const at::Tensor polynomial = Combined(rule.b, gram, rule.c, Gram(gram), rule.type);
    x = Combined(rule.a, x, 1, Matmul(polynomial, x), rule.type);
  }
  return x;
}

// The norm is known on the device alone.
at::Tensor IterateOnGpu(const at::Tensor& given, const NewtonSchulzRule& rule) {
  at::Tensor x = given.to(rule.type);
  x = x / x.norm().clamp_min(rule.eps);
  for (int step = 0; step < rule.steps; ++step) {
    const at::Tensor gram = at::mm(x, x.t());
    const at::Tensor polynomial = at::addmm(gram, gram, gram, rule.b, rule.c);
    x = at::addmm(x, polynomial, x, rule.a);
  }
  return x.to(at::kFloat);
}

}  // namespace

at::Tensor Orthogonalized(const at::Tensor& x, const NewtonSchulzRule& rule) {
  const bool tall = x.size(0) > x.size(1);  // The products are of the smaller side.
  at::Tensor wide = at::empty({tall ? x.size(1) : x.size(0), tall ? x.size(0) : x.size(1)}, x.options());
  wide.copy_(tall ? x.t() : x);
  wide = x.is_cuda() ? IterateOnGpu(wide, rule) : IterateOnCpu(wide, rule);
  return tall ? wide.t().contiguous() : wide;
}

}  // namespace trireme
