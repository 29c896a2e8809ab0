// Compiled once per instruction set with TRIREME_LOOPS naming the function that returns the table. Everything else is
// in an anonymous namespace, and no standard library template is used, so that no code for a newer processor can be
// linked into another file. One file, so that each instruction set is one translation unit.
#include "kernels/cpu/loops.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/base/gates.h"
#include "kernels/base/philox.h"

namespace trireme {
namespace {

inline float Load(float value) { return value; }
inline double Load(double value) { return value; }
inline float Load(Bf16 value) { return ToFloat(value); }
inline void Store(float* out, float value) { *out = value; }
inline void Store(double* out, double value) { *out = value; }
inline void Store(Bf16* out, float value) { *out = RoundToBf16(value); }

inline float RootOf(float x) { return sqrtf(x); }
inline double RootOf(double x) { return sqrt(x); }
inline float LogOf(float x) { return logf(x); }
inline double LogOf(double x) { return log(x); }

template <typename C>
inline C Infinity() {
  return static_cast<C>(__builtin_inf());
}

template <typename T, typename C>
void RmsNorm(int64_t rows, int64_t width, const T* x, const T* delta, const T* weight, C offset, C eps, T* h, T* y,
             C* rstd) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = x + r * width;
    C sum = 0;
    if (delta != nullptr) {
      T* h_row = h + r * width;
      const T* d = delta + r * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) Store(&h_row[i], Load(source[i]) + Load(d[i]));
      source = h_row;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += Load(source[i]) * Load(source[i]);
    const C scale = C(1) / RootOf(sum / static_cast<C>(width) + eps);
    rstd[r] = scale;
    T* out = y + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) Store(&out[i], Load(source[i]) * scale * (Load(weight[i]) + offset));
  }
}

template <typename T, typename C>
void RmsNormAgain(int64_t rows, int64_t width, const T* h, const C* rstd, const T* weight, C offset, T* y) {
  for (int64_t r = 0; r < rows; ++r) {
    const C scale = rstd[r];
    const T* source = h + r * width;
    T* out = y + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) Store(&out[i], Load(source[i]) * scale * (Load(weight[i]) + offset));
  }
}

template <typename T, typename C>
void RmsNormBackward(int64_t rows, int64_t width, const T* h, const C* rstd, const T* weight, C offset, const T* dy,
                     const T* d_h, T* dx, C* d_weight) {
  for (int64_t r = 0; r < rows; ++r) {
    const C scale = rstd[r];
    const T* source = h + r * width;
    const T* gradient = dy + r * width;
    C dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) dot += Load(gradient[i]) * (Load(weight[i]) + offset) * Load(source[i]);
    const C correction = dot * scale * scale / static_cast<C>(width);
    T* out = dx + r * width;
    if (d_h != nullptr) {
      const T* residual = d_h + r * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        Store(&out[i], Load(residual[i]) +
                           scale * (Load(gradient[i]) * (Load(weight[i]) + offset) - Load(source[i]) * correction));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        Store(&out[i], scale * (Load(gradient[i]) * (Load(weight[i]) + offset) - Load(source[i]) * correction));
      }
    }
    if (d_weight != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) d_weight[i] += Load(gradient[i]) * Load(source[i]) * scale;
    }
  }
}

template <typename T, typename C>
void LayerNorm(int64_t rows, int64_t width, const T* x, const T* weight, const T* bias, C eps, T* y, C* mean, C* rstd) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = x + r * width;
    C sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += Load(source[i]);
    const C middle = sum / static_cast<C>(width);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += (Load(source[i]) - middle) * (Load(source[i]) - middle);
    const C scale = C(1) / RootOf(squares / static_cast<C>(width) + eps);
    mean[r] = middle;
    rstd[r] = scale;
    T* out = y + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
      Store(&out[i], (Load(source[i]) - middle) * scale * Load(weight[i]) + Load(bias[i]));
  }
}

template <typename T, typename C>
void LayerNormBackward(int64_t rows, int64_t width, const T* x, const C* mean, const C* rstd, const T* weight,
                       const T* dy, T* dx, C* d_weight, C* d_bias) {
  for (int64_t r = 0; r < rows; ++r) {
    const C middle = mean[r], scale = rstd[r];
    const T* source = x + r * width;
    const T* gradient = dy + r * width;
    C sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < width; ++i) {
      const C weighted = Load(gradient[i]) * Load(weight[i]);
      sum += weighted;
      dot += weighted * (Load(source[i]) - middle);
    }
    const C shift = sum / static_cast<C>(width), slope = dot * scale * scale / static_cast<C>(width);
    T* out = dx + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const C centered = Load(source[i]) - middle;
      Store(&out[i], scale * (Load(gradient[i]) * Load(weight[i]) - shift - centered * slope));
      d_weight[i] += Load(gradient[i]) * centered * scale;
      d_bias[i] += Load(gradient[i]);
    }
  }
}

template <typename Activation, typename T, typename C>
void GatedRows(int64_t rows, int64_t width, const T* gate_up, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* gate = gate_up + r * 2 * width;
    const T* up = gate + width;
    T* result = out + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) Store(&result[i], Activation::template Forward<C>(Load(gate[i]), Load(up[i])));
  }
}

template <typename Activation, typename T, typename C>
void GatedRowsBackward(int64_t rows, int64_t width, const T* gate_up, const T* d_out, T* d_gate_up) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* gate = gate_up + r * 2 * width;
    const T* up = gate + width;
    const T* gradient = d_out + r * width;
    T* d_gate = d_gate_up + r * 2 * width;
    T* d_up = d_gate + width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      C dg, du;
      Activation::template Backward<C>(Load(gate[i]), Load(up[i]), Load(gradient[i]), &dg, &du);
      Store(&d_gate[i], dg);
      Store(&d_up[i], du);
    }
  }
}

template <typename Gate, typename T, typename C>
void ExpertGateRows(const ClampedGate& clamped, int64_t rows, int64_t width, const T* gate_up, const C* weights,
                    T* out) {
  const Gate rule(clamped);
  for (int64_t r = 0; r < rows; ++r) {
    const T* gate = gate_up + r * 2 * width;
    const T* up = gate + Gate::Up(width);
    T* result = out + r * width;
    const C weight = weights[r];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
      Store(&result[i], rule.Forward(Load(gate[i * Gate::kStep]), Load(up[i * Gate::kStep])) * weight);
  }
}

template <typename Gate, typename T, typename C>
void ExpertGateRowsBackward(const ClampedGate& clamped, int64_t rows, int64_t width, const T* gate_up, const C* weights,
                            const T* d_out, T* d_gate_up, C* d_weights, T* out) {
  const Gate rule(clamped);
  for (int64_t r = 0; r < rows; ++r) {
    const T* gate = gate_up + r * 2 * width;
    const T* up = gate + Gate::Up(width);
    const T* gradient = d_out + r * width;
    T* d_gate = d_gate_up + r * 2 * width;
    T* d_up = d_gate + Gate::Up(width);
    T* result = out + r * width;
    const C weight = weights[r];
    C dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) {
      const C g = Load(gate[i * Gate::kStep]), u = Load(up[i * Gate::kStep]), d = Load(gradient[i]);
      const C made = rule.Forward(g, u);
      dot += d * made;
      Store(&result[i], made * weight);
      C dg, du;
      rule.Backward(g, u, d * weight, &dg, &du);
      Store(&d_gate[i * Gate::kStep], dg);
      Store(&d_up[i * Gate::kStep], du);
    }
    d_weights[r] = dot;
  }
}

template <typename T, typename C>
void SumOfRows(int64_t count, const int64_t* places, int64_t width, const T* x, T* out) {
  // A piece of the sum at a time, which stays in the first cache while rows are added.
  constexpr int64_t kPiece = 512;
  for (int64_t begin = 0; begin < width; begin += kPiece) {
    const int64_t size = width - begin < kPiece ? width - begin : kPiece;
    C sum[kPiece] = {};
    for (int64_t j = 0; j < count; ++j) {
      const T* row = x + places[j] * width + begin;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) sum[i] += Load(row[i]);
    }
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) Store(&out[begin + i], sum[i]);
  }
}

template <typename T, typename C>
void Rope(int64_t rows, int64_t heads, int64_t head_dim, int64_t pairs, bool interleaved, int64_t stride, T* x,
          const int64_t* positions, const C* cosine, const C* sine, C direction) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* c = cosine + positions[r] * pairs;
    const C* s = sine + positions[r] * pairs;
    for (int64_t head = 0; head < heads; ++head) {
      T* a = x + r * stride + head * head_dim;
      if (interleaved) {
        for (int64_t i = 0; i < pairs; ++i) {
          C first = Load(a[2 * i]), second = Load(a[2 * i + 1]);
          Rotate<C>(&first, &second, c[i], s[i] * direction);
          Store(&a[2 * i], first);
          Store(&a[2 * i + 1], second);
        }
        continue;
      }
      T* b = a + pairs;
#pragma omp simd
      for (int64_t i = 0; i < pairs; ++i) {
        C first = Load(a[i]), second = Load(b[i]);
        Rotate<C>(&first, &second, c[i], s[i] * direction);
        Store(&a[i], first);
        Store(&b[i], second);
      }
    }
  }
}

// The visible columns of row i: [*begin, *end).
inline void Visible(int64_t i, int64_t columns, int64_t first_limit, int64_t window, int64_t* begin, int64_t* end) {
  int64_t limit = first_limit + i;
  int64_t hidden = window > 0 ? limit - window : 0;
  *end = limit < 0 ? 0 : (limit > columns ? columns : limit);
  *begin = hidden < 0 ? 0 : (hidden > *end ? *end : hidden);
}

template <typename C>
void SoftmaxBlock(int64_t rows, int64_t columns, int64_t ld, int64_t first_limit, int64_t window, C scale, C* scores,
                  C* row_max, C* row_sum, C* shrink) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t begin, end;
    Visible(r, columns, first_limit, window, &begin, &end);
    C* row = scores + r * ld;
    C largest = -Infinity<C>();
#pragma omp simd reduction(max : largest)
    for (int64_t i = begin; i < end; ++i) largest = row[i] > largest ? row[i] : largest;
    largest *= scale;
    const C old_max = row_max[r];
    const C new_max = largest > old_max ? largest : old_max;
    const C base = new_max == -Infinity<C>() ? C(0) : new_max;
    C sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      row[i] = Exp(row[i] * scale - base);
      sum += row[i];
    }
    for (int64_t i = 0; i < begin; ++i) row[i] = 0;
    for (int64_t i = end; i < columns; ++i) row[i] = 0;
    const C factor = old_max == -Infinity<C>() ? C(0) : Exp(old_max - base);
    shrink[r] = factor;
    row_sum[r] = row_sum[r] * factor + sum;
    row_max[r] = new_max;
  }
}

template <typename C>
void SoftmaxAgain(int64_t rows, int64_t columns, int64_t ld, int64_t first_limit, int64_t window, C scale, C* scores,
                  const C* lse) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t begin, end;
    Visible(r, columns, first_limit, window, &begin, &end);
    C* row = scores + r * ld;
    const C base = lse[r];
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) row[i] = Exp(row[i] * scale - base);
    for (int64_t i = 0; i < begin; ++i) row[i] = 0;
    for (int64_t i = end; i < columns; ++i) row[i] = 0;
  }
}

template <typename C>
void SoftmaxBackward(int64_t rows, int64_t columns, int64_t ld, C scale, const C* probabilities, const C* delta,
                     C* d_probabilities) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* p = probabilities + r * ld;
    C* d = d_probabilities + r * ld;
    const C offset = delta[r];
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) d[i] = p[i] * (d[i] - offset) * scale;
  }
}

template <typename C>
void Softcap(int64_t rows, int64_t columns, int64_t ld, C scale, C cap, C* x) {
  const C factor = scale / cap;
  for (int64_t r = 0; r < rows; ++r) {
    C* row = x + r * ld;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) row[i] = cap * Tanh(row[i] * factor);
  }
}

template <typename C>
void SoftcapBackward(int64_t rows, int64_t columns, int64_t ld, C scale, C cap, const C* x, C* d) {
  const C inverse = C(1) / cap;
  for (int64_t r = 0; r < rows; ++r) {
    const C* row = x + r * ld;
    C* gradient = d + r * ld;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) {
      const C t = row[i] * inverse;
      gradient[i] *= (C(1) - t * t) * scale;
    }
  }
}

template <typename C>
void ScaleRows(int64_t rows, int64_t columns, int64_t ld, const C* factor, C* x) {
  for (int64_t r = 0; r < rows; ++r) {
    const C f = factor[r];
    if (f == C(1)) continue;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) x[r * ld + i] *= f;
  }
}

template <typename C>
void RowDots(int64_t rows, int64_t columns, int64_t ld_a, const C* a, int64_t ld_b, const C* b, C* out) {
  for (int64_t r = 0; r < rows; ++r) {
    C sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < columns; ++i) sum += a[r * ld_a + i] * b[r * ld_b + i];
    out[r] = sum;
  }
}

template <typename C>
C CrossEntropy(int64_t vocab, const C* logits, int64_t target, C* lse) {
  C largest = -Infinity<C>();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < vocab; ++i) largest = logits[i] > largest ? logits[i] : largest;
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < vocab; ++i) sum += Exp(logits[i] - largest);
  *lse = largest + LogOf(sum);
  return target < 0 ? C(0) : *lse - logits[target];
}

template <typename C>
void CrossEntropyBackward(int64_t vocab, C* logits, int64_t target, C lse, C scale, C z_loss) {
  if (target < 0) {
    for (int64_t i = 0; i < vocab; ++i) logits[i] = 0;
    return;
  }
  const C factor = scale * (C(1) + C(2) * z_loss * lse);
#pragma omp simd
  for (int64_t i = 0; i < vocab; ++i) logits[i] = Exp(logits[i] - lse) * factor;
  if (target < vocab) logits[target] -= scale;
}

template <typename T>
void Add(int64_t n, T* a, const T* b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Store(&a[i], Load(a[i]) + Load(b[i]));
}

template <typename T, typename C>
void Accumulate(int64_t n, C* a, const T* b) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] += Load(b[i]);
}

template <typename T, typename C>
void Widen(int64_t n, const T* in, C* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = Load(in[i]);
}

template <typename T, typename C>
void Narrow(int64_t n, const C* in, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Store(&out[i], in[i]);
}

void AdamW(int64_t n, const AdamWStep& step, float keep, float* p, const float* g, float* m, float* v, Bf16* copy) {
  const AdamWStep s = step;
  if (copy == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) p[i] = AdamWElement(s, keep, p[i], g[i], &m[i], &v[i]);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    p[i] = AdamWElement(s, keep, p[i], g[i], &m[i], &v[i]);
    copy[i] = RoundToBf16(p[i]);
  }
}

void AdamWBf16(int64_t n, const AdamWStep& step, float keep, Bf16* p, const float* g, float* m, float* v,
               const uint16_t* random_bits) {
  const AdamWStep s = step;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i)
    p[i] = StochasticRoundToBf16(AdamWElement(s, keep, ToFloat(p[i]), g[i], &m[i], &v[i]), random_bits[i]);
}

void SgdStep(int64_t n, float scale, float lr, float momentum, float keep, float* p, const float* g, float* velocity,
             Bf16* copy) {
  for (int64_t i = 0; i < n; ++i) {
    float step = g[i] * scale;
    if (velocity != nullptr) {
      step += momentum * velocity[i];
      velocity[i] = step;
    }
    p[i] = p[i] * keep - lr * step;
    if (copy != nullptr) copy[i] = RoundToBf16(p[i]);
  }
}

double SquaredNorm(int64_t n, const float* x) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void PhiloxBits(int64_t first, int64_t n, uint32_t key_low, uint32_t key_high, uint16_t* out) {
  for (int64_t i = 0; i < n;) {
    const int64_t element = first + i;
    const Random4 random = Philox({key_low, key_high}, static_cast<uint64_t>(element / 8), 0);
    for (int64_t lane = element % 8; lane < 8 && i < n; ++lane, ++i) {
      out[i] = static_cast<uint16_t>(random.word[lane / 2] >> (16 * (lane % 2)));
    }
  }
}

// Philox of 16 neighbouring groups of columns at a time, one in a lane.
template <typename T, typename C>
void Dropout(int64_t rows, int64_t width, int64_t first_column, const int64_t* tokens, uint32_t key_low,
             uint32_t key_high, uint32_t threshold, C scale, const T* x, T* out) {
  constexpr int kLanes = 16;
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    const auto token = static_cast<uint64_t>(tokens[row]);
    for (int64_t group = first_column / 4; 4 * group < first_column + width; group += kLanes) {
      uint32_t words[4][kLanes];
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const Random4 random = Philox({key_low, key_high}, token, static_cast<uint64_t>(group + lane));
        for (int i = 0; i < 4; ++i) words[i][lane] = random.word[i];
      }
      const int64_t offset = 4 * group - first_column;
      const int64_t begin = offset < 0 ? -offset : 0, end = width - offset < 4 * kLanes ? width - offset : 4 * kLanes;
      for (int64_t k = begin; k < end; ++k) {
        Store(&out[offset + k], words[k % 4][k / 4] >= threshold ? Load(x[offset + k]) * scale : C(0));
      }
    }
  }
}

#if defined(__AVX2__)
// Eight values of a block's table by the nibbles of four bytes, high ones first.
inline __m256 LookUp8(__m256 low, __m256 high, const uint8_t* packed) {
  int32_t word;
  memcpy(&word, packed, sizeof(word));
  const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
  const __m256 from_low = _mm256_permutevar8x32_ps(low, index), from_high = _mm256_permutevar8x32_ps(high, index);
  return _mm256_blendv_ps(from_low, from_high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
template <int64_t kBlock>
inline void LookUpBlock(const float* table, const uint8_t* packed, float* out) {
  const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
  for (int i = 0; i < kBlock; i += 8) _mm256_storeu_ps(out + i, LookUp8(low, high, packed + i / 2));
}
#else
template <int64_t kBlock>
inline void LookUpBlock(const float* table, const uint8_t* packed, float* out) {
  for (int i = 0; i < kBlock / 2; ++i) {
    out[2 * i] = table[packed[i] >> 4];
    out[2 * i + 1] = table[packed[i] & 15];
  }
}
#endif
template <int64_t kBlock, typename T>
inline void LookUpBlock(const float* table, const uint8_t* packed, T* out) {
  float values[kBlock];
  LookUpBlock<kBlock>(table, packed, values);
  for (int i = 0; i < kBlock; ++i) Store(&out[i], values[i]);
}

template <typename T>
void Nf4Dequantize(int64_t blocks, const uint8_t* packed, const float* scales, ValueType type, T* out) {
  for (int64_t b = 0; b < blocks; ++b) {
    float table[16];  // what a block can hold: rounding these rounds all
    for (int i = 0; i < 16; ++i) table[i] = RoundTo(type, kNf4Codes[i] * scales[b]);
    LookUpBlock<kNf4Block>(table, packed + b * (kNf4Block / 2), out + b * kNf4Block);
  }
}

template <typename T>
void Mxfp4Dequantize(int64_t blocks, const uint8_t* packed, const uint8_t* scales, T* out) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float scale = Mxfp4Scale(scales[b]);
    float table[16];
    for (int i = 0; i < 16; ++i) table[i] = kMxfp4Codes[i] * scale;
    LookUpBlock<kMxfp4Block>(table, packed + b * (kMxfp4Block / 2), out + b * kMxfp4Block);
  }
}

template <typename T>
void Int8Dequantize(int64_t n, const int8_t* codes, float absmax, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Store(&out[i], Int8Value(codes[i], absmax));
}

void Nf4Quantize(int64_t blocks, const float* x, uint8_t* packed, float* absmax) {
  for (int64_t b = 0; b < blocks; ++b, x += kNf4Block, packed += kNf4Block / 2) {
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < kNf4Block; ++i) {
      const float magnitude = fabsf(x[i]);
      largest = magnitude > largest ? magnitude : largest;
      finite = finite && magnitude <= 3.402823466e38f;  // false for NaN, which the comparison before overlooks
    }
    absmax[b] = finite ? largest : Infinity<float>();
    const float scale = 1.0f / (largest < 1e-38f ? 1e-38f : largest);
    float scaled[kNf4Block];
    int32_t code[kNf4Block] = {};
    for (int i = 0; i < kNf4Block; ++i) scaled[i] = x[i] * scale;
    // The nearest code is the number of midpoints below (between two codes the lower wins).
    for (int k = 0; k < 15; ++k) {
      const float midpoint = (kNf4Codes[k] + kNf4Codes[k + 1]) / 2;
#pragma omp simd
      for (int i = 0; i < kNf4Block; ++i) code[i] += scaled[i] > midpoint ? 1 : 0;
    }
    for (int i = 0; i < kNf4Block / 2; ++i) packed[i] = static_cast<uint8_t>(code[2 * i] << 4 | code[2 * i + 1]);
  }
}

template <typename T, typename C>
TypedLoops<T, C> MakeTyped() {
  return {&RmsNorm<T, C>,
          &RmsNormAgain<T, C>,
          &RmsNormBackward<T, C>,
          &LayerNorm<T, C>,
          &LayerNormBackward<T, C>,
          &GatedRows<Silu, T, C>,
          &GatedRowsBackward<Silu, T, C>,
          &GatedRows<GeluTanh, T, C>,
          &GatedRowsBackward<GeluTanh, T, C>,
          {&ExpertGateRows<GateFirst<Silu, C>, T, C>, &ExpertGateRowsBackward<GateFirst<Silu, C>, T, C>},
          {&ExpertGateRows<GateFirst<GeluTanh, C>, T, C>, &ExpertGateRowsBackward<GateFirst<GeluTanh, C>, T, C>},
          {&ExpertGateRows<ClampedPairs<C>, T, C>, &ExpertGateRowsBackward<ClampedPairs<C>, T, C>},
          &Rope<T, C>,
          &SoftmaxBlock<C>,
          &SoftmaxAgain<C>,
          &SoftmaxBackward<C>,
          &Softcap<C>,
          &SoftcapBackward<C>,
          &ScaleRows<C>,
          &RowDots<C>,
          &CrossEntropy<C>,
          &CrossEntropyBackward<C>,
          &Dropout<T, C>,
          &SumOfRows<T, C>,
          &Add<T>,
          &Accumulate<T, C>,
          &Widen<T, C>,
          &Narrow<T, C>,
          &Nf4Dequantize<T>,
          &Mxfp4Dequantize<T>,
          &Int8Dequantize<T>};
}

}  // namespace

const CpuLoops& TRIREME_LOOPS() {
  static const CpuLoops loops = {TRIREME_LOOPS_NAME,
                                 MakeTyped<float, float>(),
                                 MakeTyped<double, double>(),
                                 MakeTyped<Bf16, float>(),
                                 &AdamW,
                                 &AdamWBf16,
                                 &SgdStep,
                                 &SquaredNorm,
                                 &PhiloxBits,
                                 &Nf4Quantize};
  return loops;
}

}  // namespace trireme
