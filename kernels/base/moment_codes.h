// kernels/base/moment_codes.h
// AdamW's moments in 8 bits (arXiv 2110.02861), as bitsandbytes keeps them on a CPU: blocks of 256 elements along the
// flattened parameter, each with its largest magnitude as scale, and codes of two dynamic maps. Read by the CPU and the
// CUDA kernels alike.
#ifndef TRIREME_KERNELS_BASE_MOMENT_CODES_H_
#define TRIREME_KERNELS_BASE_MOMENT_CODES_H_

#include <math.h>
#include <stdint.h>

#include "kernels/base/element_math.h"
#include "kernels/base/host_device.h"

namespace trireme {

inline constexpr int64_t kMomentBlock = 256;  // elements with one scale
inline constexpr int kMomentBins = 65536;     // of [-1, 1]: numbers of one bin have one code

// Where numbers in units of a block's scale stand among the bins. What is no number stands in the first one: zero times
// the inverse of a scale that is too small to have one.
TRIREME_HOST_DEVICE inline int MomentBin(float x) {
  const float clamped = x > -1.0F ? (x < 1.0F ? x : 1.0F) : -1.0F;
  return static_cast<int>((clamped + 1.0F) * 0.5F * (kMomentBins - 1) + 0.5F);
}

// Of the first moment the map has signs, of the second it has none. Pointers are the device's.
struct MomentMaps {
  const float *first = nullptr, *second = nullptr;                // [256], ascending: what codes stand for
  const uint8_t *first_codes = nullptr, *second_codes = nullptr;  // [kMomentBins]: the nearest code
};

// A block's moments of one parameter. Pointers to what all blocks have.
struct MomentArrays {
  uint8_t *first = nullptr, *second = nullptr;              // [n] codes
  float *first_absmax = nullptr, *second_absmax = nullptr;  // [blocks]
};

// a * b + c, rounded once. Not every CPU has an instruction for it; in float64 the product is exact.
TRIREME_HOST_DEVICE inline float MultiplyAdd(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
#endif
}

// The moments of an element after its gradient came, before they are rounded to codes.
TRIREME_HOST_DEVICE inline float NextFirstMoment(const AdamWStep& s, float m, float g) {
  return MultiplyAdd(g, s.one_minus_beta1, m * s.beta1);
}
TRIREME_HOST_DEVICE inline float NextSecondMoment(const AdamWStep& s, float v, float g) {
  return MultiplyAdd(s.one_minus_beta2 * g, g, v * s.beta2);
}
TRIREME_HOST_DEVICE inline float AdamWWeight(const AdamWStep& s, float keep, float p, float m, float v) {
  return p * keep - s.step_size * (m / (sqrtf(v) * s.inverse_root_correction + s.eps));
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_MOMENT_CODES_H_
