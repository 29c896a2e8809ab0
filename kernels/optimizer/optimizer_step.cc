#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {
namespace {

constexpr int64_t kGrain = 16384;

}  // namespace

void AdamWUpdate(const AdamWStep& step, float keep, at::Tensor p, const at::Tensor& g, at::Tensor m, at::Tensor v,
                 at::Tensor copy) {
  if (p.is_cuda()) return cuda::AdamWUpdate(step, keep, p, g, m, v, copy);
  Bf16* copy_data = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Loops().adamw(end - begin, step, keep, Data<float>(p) + begin, Data<float>(g) + begin, Data<float>(m) + begin,
                  Data<float>(v) + begin, copy_data == nullptr ? nullptr : copy_data + begin);
  });
}

void AdamWUpdateBf16(const AdamWStep& step, float keep, at::Tensor p, const at::Tensor& g, at::Tensor m, at::Tensor v,
                     RandomKey key, int64_t first_index) {
  if (p.is_cuda()) return cuda::AdamWUpdateBf16(step, keep, p, g, m, v, key, first_index);
  ParallelRanges(p.numel(), kGrain, [&](int64_t begin, int64_t end) {
    uint16_t bits[kGrain];
    Loops().philox_bits(first_index + begin, end - begin, key.low, key.high, bits);
    Loops().adamw_bf16(end - begin, step, keep, Data<Bf16>(p) + begin, Data<float>(g) + begin, Data<float>(m) + begin,
                       Data<float>(v) + begin, bits);
  });
}

void SgdUpdate(float gradient_scale, float lr, float momentum, float keep, at::Tensor p, const at::Tensor& g,
               at::Tensor velocity, at::Tensor copy) {
  if (p.is_cuda()) return cuda::SgdUpdate(gradient_scale, lr, momentum, keep, p, g, velocity, copy);
  float* velocity_data = Data<float>(velocity);
  Bf16* copy_data = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Loops().sgd(end - begin, gradient_scale, lr, momentum, keep, Data<float>(p) + begin, Data<float>(g) + begin,
                velocity_data == nullptr ? nullptr : velocity_data + begin,
                copy_data == nullptr ? nullptr : copy_data + begin);
  });
}

}  // namespace trireme
