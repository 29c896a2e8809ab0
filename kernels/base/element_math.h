// kernels/base/element_math.h
// The arithmetic of one element, read by the CPU loops and the CUDA kernels alike: the CPU tests check the maths the
// GPU runs. No standard library templates: this header is compiled for several instruction sets.
#ifndef TRIREME_KERNELS_BASE_ELEMENT_MATH_H_
#define TRIREME_KERNELS_BASE_ELEMENT_MATH_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/base/host_device.h"

namespace trireme {

// bfloat16 by its bits: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

TRIREME_HOST_DEVICE inline uint32_t FloatBits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
TRIREME_HOST_DEVICE inline float BitsFloat(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

TRIREME_HOST_DEVICE inline float ToFloat(Bf16 value) { return BitsFloat(static_cast<uint32_t>(value.bits) << 16); }

// Round to nearest even; NaN stays NaN.
TRIREME_HOST_DEVICE inline Bf16 RoundToBf16(float value) {
  const uint32_t bits = FloatBits(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  return {static_cast<uint16_t>(nan ? 0x7FC0 : rounded)};
}

// Rounds up with the probability of the cut-off part: the expectation is the value. `random`: 16 random bits.
// Infinities and NaN pass.
TRIREME_HOST_DEVICE inline Bf16 StochasticRoundToBf16(float value, uint32_t random) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7F800000) == 0x7F800000) return RoundToBf16(value);
  return {static_cast<uint16_t>((bits + (random & 0xFFFF)) >> 16)};
}

// exp(x) to about one unit in the last place, without branches or tables (range reduction by ln 2, degree-6
// polynomial), so that loops over it become vector code. Flushes to 0 below -87.3 and to infinity above 88.7; NaN gives
// NaN.
TRIREME_HOST_DEVICE inline float Exp(float x) {
  const float clamped = x < -87.33654f ? -87.33654f : (x > 88.72283f ? 88.72283f : x);
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n = 128 alone would overflow.
  const int32_t whole = static_cast<int32_t>(n);
  const int32_t half = whole / 2;
  const float scaled = p * BitsFloat(static_cast<uint32_t>(half + 127) << 23) *
                       BitsFloat(static_cast<uint32_t>(whole - half + 127) << 23);
  const float low = x < -87.33654f ? 0.0f : scaled;
  return x > 88.72283f ? INFINITY : low;
}
TRIREME_HOST_DEVICE inline double Exp(double x) { return exp(x); }

// SwiGLU: silu(gate) * up, with silu(g) = g * sigmoid(g). C: float or double.
template <typename C>
TRIREME_HOST_DEVICE inline C SwiGlu(C gate, C up) {
  return gate / (C(1) + Exp(-gate)) * up;
}
template <typename C>
TRIREME_HOST_DEVICE inline void SwiGluBackward(C gate, C up, C d_out, C* d_gate, C* d_up) {
  const C sigmoid = C(1) / (C(1) + Exp(-gate));
  const C silu = gate * sigmoid;
  *d_up = d_out * silu;
  *d_gate = d_out * up * (sigmoid + silu * (C(1) - sigmoid));
}

// GELU by its tanh formula (Transformers' gelu_pytorch_tanh): g (1 + tanh(u)) / 2 = g sigmoid(2u), with
// u = sqrt(2 / pi) (g + 0.044715 g^3); times up.
template <typename C>
TRIREME_HOST_DEVICE inline C GeGlu(C gate, C up) {
  const C twice = C(1.5957691216057308) * (gate + C(0.044715) * gate * gate * gate);
  return gate / (C(1) + Exp(-twice)) * up;
}
template <typename C>
TRIREME_HOST_DEVICE inline void GeGluBackward(C gate, C up, C d_out, C* d_gate, C* d_up) {
  const C twice = C(1.5957691216057308) * (gate + C(0.044715) * gate * gate * gate);
  const C slope = C(1.5957691216057308) * (C(1) + C(0.134145) * gate * gate);
  const C sigmoid = C(1) / (C(1) + Exp(-twice));
  *d_up = d_out * gate * sigmoid;
  *d_gate = d_out * up * sigmoid * (C(1) + gate * (C(1) - sigmoid) * slope);
}

// A gate with limits (gpt-oss): g sigmoid(alpha g) (1 + u), with g = min(gate, limit) and u = up cut to +-limit.
struct ClampedGate {
  double alpha = 1.702, limit = 7;
};
template <typename C>
TRIREME_HOST_DEVICE inline C ClampedGlu(C alpha, C limit, C gate, C up) {
  const C g = gate > limit ? limit : gate;
  const C u = up > limit ? limit : (up < -limit ? -limit : up);
  return g / (C(1) + Exp(-alpha * g)) * (u + C(1));
}
// A limit that is reached passes gradient, one that is exceeded does not, as torch.clamp has it.
template <typename C>
TRIREME_HOST_DEVICE inline void ClampedGluBackward(C alpha, C limit, C gate, C up, C d_out, C* d_gate, C* d_up) {
  const C g = gate > limit ? limit : gate;
  const C u = up > limit ? limit : (up < -limit ? -limit : up);
  const C sigmoid = C(1) / (C(1) + Exp(-alpha * g));
  const C slope = d_out * (u + C(1)) * sigmoid * (C(1) + alpha * g * (C(1) - sigmoid));
  *d_gate = gate > limit ? C(0) : slope;
  *d_up = up > limit || up < -limit ? C(0) : d_out * g * sigmoid;
}

// tanh(x) to a few units of the last place of 1: odd, so that small arguments keep their sign and zero stays zero.
TRIREME_HOST_DEVICE inline float Tanh(float x) {
  const float size = x < 0 ? -x : x, e = Exp(-2.0f * size);
  const float square = x * x;
  // Below 1/8 the quotient would cancel: x - x^3/3 + 2x^5/15 - 17x^7/315.
  const float series = size * (1.0f + square * (-0.33333333f + square * (0.13333333f + square * -0.053968254f)));
  const float value = size < 0.125f ? series : (1.0f - e) / (1.0f + e);
  return x < 0 ? -value : value;
}
TRIREME_HOST_DEVICE inline double Tanh(double x) { return tanh(x); }

// Rotates the pair (a, b) = (x[i], x[i + head_dim / 2]) by an angle, as Transformers' rotate_half does.
template <typename C>
TRIREME_HOST_DEVICE inline void Rotate(C* a, C* b, C cosine, C sine) {
  const C x = *a, y = *b;
  *a = x * cosine - y * sine;
  *b = y * cosine + x * sine;
}

// What AdamW needs for one step, computed once in double on the host.
struct AdamWStep {
  float gradient_scale;  // Clip factor.
  float beta1, beta2;    // Moment decays.
  float one_minus_beta1, one_minus_beta2;
  float step_size;                // lr / (1 - beta1^step)
  float inverse_root_correction;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

// One element in torch.optim.AdamW's order: decay first (keep = 1 - lr * weight_decay), then moments, then the step.
TRIREME_HOST_DEVICE inline float AdamWElement(const AdamWStep& s, float keep, float p, float g, float* m, float* v) {
  g = g * s.gradient_scale;
  const float m_new = *m + (g - *m) * s.one_minus_beta1;
  const float v_new = *v * s.beta2 + g * g * s.one_minus_beta2;
  *m = m_new;
  *v = v_new;
  return p * keep - s.step_size * (m_new / (sqrtf(v_new) * s.inverse_root_correction + s.eps));
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_ELEMENT_MATH_H_
