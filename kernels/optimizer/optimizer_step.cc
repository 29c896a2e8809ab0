#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

constexpr int64_t kStepGrain = 16384;

}  // namespace

void AdamWUpdate(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                 at::Tensor v, at::Tensor copy) {
  if (p.is_cuda()) return cuda::AdamWUpdate(rule, decision, p, g, m, v, copy);
  if (DecisionIn(decision).apply == 0) return;
  const AdamWStep step = StepOf(rule, DecisionIn(decision));
  Bf16* copy_data = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kStepGrain, [&](int64_t begin, int64_t end) {
    Loops().adamw(end - begin, step, rule.keep, Data<float>(p) + begin, Data<float>(g) + begin, Data<float>(m) + begin,
                  Data<float>(v) + begin, copy_data == nullptr ? nullptr : copy_data + begin);
  });
}

void AdamWUpdateBf16(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                     at::Tensor v, RandomKey key, const WholeIndex& index) {
  if (p.is_cuda()) return cuda::AdamWUpdateBf16(rule, decision, p, g, m, v, key, index);
  if (DecisionIn(decision).apply == 0) return;
  const AdamWStep step = StepOf(rule, DecisionIn(decision));
  ParallelRanges(p.numel(), kStepGrain, [&](int64_t begin, int64_t end) {
    uint16_t bits[kStepGrain];
    for (int64_t i = begin; i < end;) {
      const int64_t run = index.RunFrom(i, end - i);
      Loops().philox_bits(index.Of(i), run, key.low, key.high, bits + (i - begin));
      i += run;
    }
    Loops().adamw_bf16(end - begin, step, rule.keep, Data<Bf16>(p) + begin, Data<float>(g) + begin,
                       Data<float>(m) + begin, Data<float>(v) + begin, bits);
  });
}

void SgdUpdate(const SgdRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor velocity,
               at::Tensor copy) {
  if (p.is_cuda()) return cuda::SgdUpdate(rule, decision, p, g, velocity, copy);
  if (DecisionIn(decision).apply == 0) return;
  const auto scale = static_cast<float>(DecisionIn(decision).clip_factor);
  float* velocity_data = Data<float>(velocity);
  Bf16* copy_data = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kStepGrain, [&](int64_t begin, int64_t end) {
    Loops().sgd(end - begin, scale, rule.rate, rule.momentum, rule.keep, Data<float>(p) + begin, Data<float>(g) + begin,
                velocity_data == nullptr ? nullptr : velocity_data + begin,
                copy_data == nullptr ? nullptr : copy_data + begin);
  });
}

}  // namespace trireme
