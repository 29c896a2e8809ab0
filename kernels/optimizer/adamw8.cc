#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"
#include "kernels/matrix/nf4.h"
#include "kernels/optimizer/random_bits.h"

namespace trireme {
namespace {

constexpr int64_t kEightBitTaskBlocks = 64;

float WeightValue(float weight) { return weight; }
float WeightValue(Bf16 weight) { return ToFloat(weight); }

// The code of every bin: the nearest of the map to the bin's middle, of two equally near ones the lower.
void FillCodes(const std::array<float, 256>& map, uint8_t* codes) {
  int code = 0;
  for (int bin = 0; bin < kMomentBins; ++bin) {
    const float value = -1.0F + (2.0F * static_cast<float>(bin)) / (kMomentBins - 1);
    while (code < 255 && 0.5F * (map[code] + map[code + 1]) < value) ++code;
    codes[bin] = static_cast<uint8_t>(code);
  }
}

at::Tensor OnDevice(const void* data, int64_t n, at::ScalarType type, at::Device device) {
  at::Tensor host = at::empty({n}, at::TensorOptions().dtype(type));
  std::memcpy(host.data_ptr(), data, host.nbytes());
  return host.to(device);
}

// Codes of a block's values, and their largest magnitude. A block of zeros has code 0, whatever the map's is there.
inline void Encode(int n, const float* values, const uint8_t* codes, uint8_t* out, float* absmax) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  *absmax = largest;
  if (largest == 0) {
    std::fill(out, out + n, uint8_t{0});
    return;
  }
  const float inverse = 1.0F / largest;
  int bins[kMomentBlock];
  for (int i = 0; i < n; ++i) bins[i] = MomentBin(values[i] * inverse);
  for (int i = 0; i < n; ++i) out[i] = codes[bins[i]];
}

// weights [n] of a block move; those of bfloat16 are rounded with `bits`.
template <typename T>
inline void UpdateBlock(const AdamWStep& step, float keep, const MomentMaps& maps, const MomentArrays& own, int n,
                        T* weights, const float* g, const uint16_t* bits) {
  float first[kMomentBlock], second[kMomentBlock];
  const float first_scale = *own.first_absmax, second_scale = *own.second_absmax;
  // Loops of one kind of work each, which the compiler makes wide.
  for (int i = 0; i < n; ++i) {
    first[i] = maps.first[own.first[i]];
    second[i] = maps.second[own.second[i]];
  }
  for (int i = 0; i < n; ++i) {
    const float gradient = g[i] * step.gradient_scale;
    first[i] = NextFirstMoment(step, first[i] * first_scale, gradient);
    second[i] = NextSecondMoment(step, second[i] * second_scale, gradient);
  }
  for (int i = 0; i < n; ++i) {
    const float weight = AdamWWeight(step, keep, WeightValue(weights[i]), first[i], second[i]);
    if constexpr (std::is_same_v<T, float>) {
      weights[i] = weight;
    } else {
      weights[i] = StochasticRoundToBf16(weight, bits[i]);
    }
  }
  Encode(n, first, maps.first_codes, own.first, own.first_absmax);
  Encode(n, second, maps.second_codes, own.second, own.second_absmax);
}

template <typename T>
void UpdateBlocks(const AdamWRule& rule, const UpdateDecision& decision, const at::Tensor& p, const at::Tensor& g,
                  const EightBitMoments& moments, const MomentTables& tables, const at::Tensor& copy, RandomKey key,
                  const WholeIndex& index) {
  const AdamWStep step = StepOf(rule, decision);
  const MomentMaps maps = {Data<float>(tables.first), Data<float>(tables.second), Data<uint8_t>(tables.first_codes),
                           Data<uint8_t>(tables.second_codes)};
  T* weights = Data<T>(p);
  Bf16* rounded = Data<Bf16>(copy);
  ParallelRanges(p.numel(), kEightBitTaskBlocks * kMomentBlock, [&](int64_t begin, int64_t end) {
    uint16_t bits[kEightBitTaskBlocks * kMomentBlock];
    if (std::is_same_v<T, Bf16>) RandomBits(index, key, begin, end, bits);
    for (int64_t i = begin; i < end; i += kMomentBlock) {
      const int64_t block = i / kMomentBlock;
      const MomentArrays own = {Data<uint8_t>(moments.first) + i, Data<uint8_t>(moments.second) + i,
                                Data<float>(moments.first_absmax) + block, Data<float>(moments.second_absmax) + block};
      UpdateBlock(step, rule.keep, maps, own, static_cast<int>(std::min(kMomentBlock, end - i)), weights + i,
                  Data<float>(g) + i, bits + (i - begin));
    }
    if constexpr (std::is_same_v<T, float>) {
      if (rounded != nullptr) Loops().bf16.narrow(end - begin, weights + begin, rounded + begin);
    }
  });
}

}  // namespace

MomentTables MakeMomentTables(at::Device device) {
  MomentTables tables;
  std::vector<uint8_t> codes(kMomentBins);
  const auto fill = [&](const std::array<float, 256>& map, at::Tensor* values, at::Tensor* of_bins) {
    FillCodes(map, codes.data());
    *values = OnDevice(map.data(), 256, at::kFloat, device);
    *of_bins = OnDevice(codes.data(), kMomentBins, at::kByte, device);
  };
  fill(SignedDynamicMap(), &tables.first, &tables.first_codes);
  fill(UnsignedDynamicMap(), &tables.second, &tables.second_codes);
  return tables;
}

void AdamW8Update(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g,
                  const EightBitMoments& moments, const MomentTables& tables, at::Tensor copy, RandomKey key,
                  const WholeIndex& index) {
  if (p.is_cuda()) return cuda::AdamW8Update(rule, decision, p, g, moments, tables, copy, key, index);
  if (DecisionIn(decision).apply == 0) return;
  if (p.scalar_type() == at::kBFloat16) {
    UpdateBlocks<Bf16>(rule, DecisionIn(decision), p, g, moments, tables, copy, key, index);
  } else {
    UpdateBlocks<float>(rule, DecisionIn(decision), p, g, moments, tables, copy, key, index);
  }
}

}  // namespace trireme
