#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"
#include "kernels/optimizer/random_bits.h"

namespace trireme {
namespace {

constexpr int64_t kStepGrain = 16384;

// p[i] = element(i, p[i]) for all of p.
template <typename Element>
void UpdateElements(const at::Tensor& p, const at::Tensor& copy, const Element& element) {
  float* weights = Data<float>(p);
  Bf16* rounded = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kStepGrain, [=](int64_t begin, int64_t end) {
    const Element e = element;
    for (int64_t i = begin; i < end; ++i) weights[i] = e(i, weights[i]);
    if (rounded != nullptr) Loops().bf16.narrow(end - begin, weights + begin, rounded + begin);
  });
}

template <typename Element>
void UpdateElementsBf16(const at::Tensor& p, RandomKey key, const WholeIndex& index, const Element& element) {
  Bf16* weights = Data<Bf16>(p);
  ParallelRanges(p.numel(), kStepGrain, [&](int64_t begin, int64_t end) {
    const Element e = element;
    uint16_t bits[kStepGrain];
    RandomBits(index, key, begin, end, bits);
    for (int64_t i = begin; i < end; ++i)
      weights[i] = StochasticRoundToBf16(e(i, ToFloat(weights[i])), bits[i - begin]);
  });
}

LionElement ElementOf(const LionRule& rule, const at::Tensor& decision, const at::Tensor& g, const at::Tensor& m) {
  return {rule, Data<float>(g), Data<float>(m), static_cast<float>(DecisionIn(decision).clip_factor)};
}

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
    RandomBits(index, key, begin, end, bits);
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

void LionUpdate(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                at::Tensor copy) {
  if (p.is_cuda()) return cuda::LionUpdate(rule, decision, p, g, m, copy);
  if (DecisionIn(decision).apply != 0) UpdateElements(p, copy, ElementOf(rule, decision, g, m));
}

void LionUpdateBf16(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                    RandomKey key, const WholeIndex& index) {
  if (p.is_cuda()) return cuda::LionUpdateBf16(rule, decision, p, g, m, key, index);
  if (DecisionIn(decision).apply != 0) UpdateElementsBf16(p, key, index, ElementOf(rule, decision, g, m));
}

void DirectionUpdate(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& direction,
                     at::Tensor copy) {
  if (p.is_cuda()) return cuda::DirectionUpdate(rule, decision, p, direction, copy);
  if (DecisionIn(decision).apply != 0) UpdateElements(p, copy, DirectionElement{rule, Data<float>(direction)});
}

void DirectionUpdateBf16(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p,
                         const at::Tensor& direction, RandomKey key, const WholeIndex& index) {
  if (p.is_cuda()) return cuda::DirectionUpdateBf16(rule, decision, p, direction, key, index);
  if (DecisionIn(decision).apply != 0)
    UpdateElementsBf16(p, key, index, DirectionElement{rule, Data<float>(direction)});
}

void MuonMomentum(const MuonMomentumRule& rule, const at::Tensor& decision, const at::Tensor& g, at::Tensor mean,
                  at::Tensor out) {
  if (g.is_cuda()) return cuda::MuonMomentum(rule, decision, g, mean, out);
  const bool apply = DecisionIn(decision).apply != 0;
  const auto scale = static_cast<float>(DecisionIn(decision).clip_factor);
  const float* gradients = Data<float>(g);
  float *means = Data<float>(mean), *outs = Data<float>(out);
  ParallelRanges(g.numel(), kStepGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      outs[i] = apply ? MuonMomentumElement(rule, gradients[i] * scale, &means[i]) : 0.0F;
  });
}

}  // namespace trireme
