// kernels/cpu/loops.h
// The inner loops of the CPU kernels: single-threaded, raw pointers, row-major. loops.cc is compiled once per
// instruction set (portable, AVX2, AVX-512); Loops() picks the best one this processor has. T: storage type; arithmetic
// in float, or double when T is double.
#ifndef TRIREME_KERNELS_CPU_LOOPS_H_
#define TRIREME_KERNELS_CPU_LOOPS_H_

#include <stdint.h>

#include "kernels/base/element_math.h"
#include "kernels/base/nf4_math.h"

namespace trireme {

// An expert's gate: gate_up [rows, 2 width] -> out [rows, width], each row times its weight [rows].
template <typename T, typename C>
struct ExpertGateLoops {
  void (*forward)(const ClampedGate& clamped, int64_t rows, int64_t width, const T* gate_up, const C* weights, T* out);
  // Sets the gradients of gate_up and weights, and out as forward does.
  void (*backward)(const ClampedGate& clamped, int64_t rows, int64_t width, const T* gate_up, const C* weights,
                   const T* d_out, T* d_gate_up, C* d_weights, T* out);
};

// T = float, double, Bf16; C = the arithmetic type of T.
template <typename T, typename C>
struct TypedLoops {
  // h = x + delta (when delta is not null), else h is not written; y = h * rstd * (weight + offset), rstd[row] = 1 /
  // sqrt(mean(h^2) + eps).
  void (*rms_norm)(int64_t rows, int64_t width, const T* x, const T* delta, const T* weight, C offset, C eps, T* h,
                   T* y, C* rstd);
  // y, from what rms_norm left.
  void (*rms_norm_again)(int64_t rows, int64_t width, const T* h, const C* rstd, const T* weight, C offset, T* y);
  // dx = d_h (when not null) + the norm's gradient; d_weight [width] += this part's weight gradient (when not null).
  void (*rms_norm_backward)(int64_t rows, int64_t width, const T* h, const C* rstd, const T* weight, C offset,
                            const T* dy, const T* d_h, T* dx, C* d_weight);
  // y = (x - mean) * rstd * weight + bias, with each row's mean and rstd = 1 / sqrt(mean((x - mean)^2) + eps).
  void (*layer_norm)(int64_t rows, int64_t width, const T* x, const T* weight, const T* bias, C eps, T* y, C* mean,
                     C* rstd);
  // dx = the norm's gradient; d_weight and d_bias [width] += this part's.
  void (*layer_norm_backward)(int64_t rows, int64_t width, const T* x, const C* mean, const C* rstd, const T* weight,
                              const T* dy, T* dx, C* d_weight, C* d_bias);
  // gate_up [rows, 2 * width] (gate first), out [rows, width].
  void (*swiglu)(int64_t rows, int64_t width, const T* gate_up, T* out);
  void (*swiglu_backward)(int64_t rows, int64_t width, const T* gate_up, const T* d_out, T* d_gate_up);
  void (*geglu)(int64_t rows, int64_t width, const T* gate_up, T* out);  // the same with GELU of the gate
  void (*geglu_backward)(int64_t rows, int64_t width, const T* gate_up, const T* d_out, T* d_gate_up);
  // gate_up gate first, or with `clamped` a unit's gate and up neighbours. Only the last reads its rule.
  ExpertGateLoops<T, C> expert_swiglu, expert_geglu, expert_clamped;
  // Rotates the first `pairs` pairs of each of `heads` heads of head_dim, in place, in rows `stride` apart: i and
  // i + pairs, or interleaved 2i and 2i + 1. cosine, sine [positions, pairs]; direction 1 or -1.
  void (*rope)(int64_t rows, int64_t heads, int64_t head_dim, int64_t pairs, bool interleaved, int64_t stride, T* x,
               const int64_t* positions, const C* cosine, const C* sine, C direction);
  // Attention, one block of scores [rows, columns] with row stride ld, columns [0, limit_i) visible where limit_i =
  // min(columns, first_limit + i) and columns below first_hidden_i = max(0, first_limit + i - window) hidden (window 0:
  // none). Turns scores into probabilities relative to the running maximum; updates max and sum; writes the factor by
  // which earlier output shrinks.
  void (*softmax_block)(int64_t rows, int64_t columns, int64_t ld, int64_t first_limit, int64_t window, C scale,
                        C* scores, C* row_max, C* row_sum, C* shrink);
  // Probabilities again from scores and lse; hidden columns become 0.
  void (*softmax_again)(int64_t rows, int64_t columns, int64_t ld, int64_t first_limit, int64_t window, C scale,
                        C* scores, const C* lse);
  // scores (probabilities) and d_probabilities -> d_scores = p * (dp - delta[row]) * scale, in place of
  // d_probabilities.
  void (*softmax_backward)(int64_t rows, int64_t columns, int64_t ld, C scale, const C* probabilities, const C* delta,
                           C* d_probabilities);
  // The soft cap of scores: x = cap * tanh(x * scale / cap).
  void (*softcap)(int64_t rows, int64_t columns, int64_t ld, C scale, C cap, C* x);
  // And its gradient: d *= (1 - (x / cap)^2) * scale, with x after the cap.
  void (*softcap_backward)(int64_t rows, int64_t columns, int64_t ld, C scale, C cap, const C* x, C* d);
  // Rows of C scaled by factor[row].
  void (*scale_rows)(int64_t rows, int64_t columns, int64_t ld, const C* factor, C* x);
  // sum over columns of a * b, per row.
  void (*row_dots)(int64_t rows, int64_t columns, int64_t ld_a, const C* a, int64_t ld_b, const C* b, C* out);
  // Cross-entropy of one row of logits [vocab] (arithmetic type): returns lse - logits[target]; *lse is set (-inf for
  // vocab 0). target < 0: no loss.
  C (*cross_entropy)(int64_t vocab, const C* logits, int64_t target, C* lse);
  // logits -> their gradient in place: (softmax * (1 + 2 z_loss lse) - onehot(target)) * scale; all zero when target <
  // 0; target >= vocab: it is not among these columns.
  void (*cross_entropy_backward)(int64_t vocab, C* logits, int64_t target, C lse, C scale, C z_loss);
  // out = x * scale where the element stays, else 0 (kernels/base/dropout.h).
  void (*dropout)(int64_t rows, int64_t width, int64_t first_column, const int64_t* tokens, uint32_t key_low,
                  uint32_t key_high, uint32_t threshold, C scale, const T* x, T* out);
  // out [width] = the sum, in order, of `count` rows of x [.., width], those at `places`.
  void (*sum_of_rows)(int64_t count, const int64_t* places, int64_t width, const T* x, T* out);
  // a += b, and a += b with a in the arithmetic type.
  void (*add)(int64_t n, T* a, const T* b);
  void (*accumulate)(int64_t n, C* a, const T* b);
  // Conversions.
  void (*widen)(int64_t n, const T* in, C* out);
  void (*narrow)(int64_t n, const C* in, T* out);
  // NF4 blocks of 64, each with a scale -> values, rounded to `type`.
  void (*nf4_dequantize)(int64_t blocks, const uint8_t* packed, const float* scales, ValueType type, T* out);
  void (*mxfp4_dequantize)(int64_t blocks, const uint8_t* packed, const uint8_t* scales, T* out);  // blocks of 32
  void (*int8_dequantize)(int64_t n, const int8_t* codes, float absmax, T* out);
};

struct CpuLoops {
  const char* name;  // "portable", "avx2", "avx512"
  TypedLoops<float, float> f32;
  TypedLoops<double, double> f64;
  TypedLoops<Bf16, float> bf16;

  // p, m, v [n]; g [n]; keep = 1 - lr * weight_decay; copy: bf16 copy of p, or null.
  void (*adamw)(int64_t n, const AdamWStep& step, float keep, float* p, const float* g, float* m, float* v, Bf16* copy);
  // AdamW on bf16 weights without master weights; random_bits [n]: 16 random bits each.
  void (*adamw_bf16)(int64_t n, const AdamWStep& step, float keep, Bf16* p, const float* g, float* m, float* v,
                     const uint16_t* random_bits);
  // velocity = momentum * velocity + scale * g; p = p * keep - lr * velocity. velocity null: plain.
  void (*sgd)(int64_t n, float scale, float lr, float momentum, float keep, float* p, const float* g, float* velocity,
              Bf16* copy);
  double (*squared_norm)(int64_t n, const float* x);
  void (*philox_bits)(int64_t first, int64_t n, uint32_t key_low, uint32_t key_high,
                      uint16_t* out);  // 16 bits for elements [first, first + n)
  // x [blocks * 64] -> packed [blocks * 32], absmax [blocks].
  void (*nf4_quantize)(int64_t blocks, const float* x, uint8_t* packed, float* absmax);
};

// The best loops for this processor. TRIREME_CPU=portable|avx2|avx512 in the environment chooses lower ones.
const CpuLoops& Loops();

const CpuLoops& PortableLoops();
const CpuLoops& Avx2Loops();
const CpuLoops& Avx512Loops();

template <typename T>
struct ArithmeticOf {
  using Type = float;
};
template <>
struct ArithmeticOf<double> {
  using Type = double;
};

template <typename T>
const TypedLoops<T, typename ArithmeticOf<T>::Type>& LoopsFor();
template <>
inline const TypedLoops<float, float>& LoopsFor<float>() {
  return Loops().f32;
}
template <>
inline const TypedLoops<double, double>& LoopsFor<double>() {
  return Loops().f64;
}
template <>
inline const TypedLoops<Bf16, float>& LoopsFor<Bf16>() {
  return Loops().bf16;
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_CPU_LOOPS_H_
