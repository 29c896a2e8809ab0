// Updates of flat arrays, a pack of elements per thread. Shards begin at multiples of 256 elements, so the 16-byte path
// is the usual one.
#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRandomsPerCall = 8;           // 16-bit numbers that one Philox call gives.
constexpr int64_t kElementsPerPart = 65536;  // of the squared norm

unsigned Blocks(int64_t n, int per_thread) {
  const int64_t per_block = static_cast<int64_t>(kThreads) * per_thread;
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// Runs body(i) once per element of this thread's pack, or of the rest of the array.
template <int kCount, typename Body>
__device__ inline void ForOwnElements(int64_t n, Body body) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCount;
  for (int64_t i = begin; i < begin + kCount && i < n; ++i) body(i);
}

template <int kCount>
__device__ inline bool OwnsWholePack(int64_t n, int64_t* begin) {
  *begin = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCount;
  return *begin + kCount <= n;
}

template <bool kVector>
__global__ void AdamWKernel(AdamWRule rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
                            float* m, float* v, Bf16* copy) {
  if (decision->apply == 0) return;
  const AdamWStep s = StepOf(rule, *decision);
  const float keep = rule.keep;
  int64_t i;
  if (kVector && OwnsWholePack<4>(n, &i)) {
    Pack<float, 4> weights = LoadPack<float, 4>(p + i), first = LoadPack<float, 4>(m + i),
                   second = LoadPack<float, 4>(v + i);
    const Pack<float, 4> gradients = LoadPack<float, 4>(g + i);
    Pack<Bf16, 4> rounded;
    for (int j = 0; j < 4; ++j) {
      weights.value[j] = AdamWElement(s, keep, weights.value[j], gradients.value[j], &first.value[j], &second.value[j]);
      Store(&rounded.value[j], weights.value[j]);
    }
    StorePack(p + i, weights);
    StorePack(m + i, first);
    StorePack(v + i, second);
    if (copy != nullptr) StorePack(copy + i, rounded);
    return;
  }
  ForOwnElements<kVector ? 4 : 1>(n, [&](int64_t k) {
    p[k] = AdamWElement(s, keep, p[k], g[k], &m[k], &v[k]);
    if (copy != nullptr) Store(&copy[k], p[k]);
  });
}

// The 16 random bits of a global element index, as on the CPU: eight numbers from each call.
__device__ inline uint32_t RandomBits(const Random4& random, int lane) {
  return random.word[lane / 2] >> (16 * (lane % 2));
}

// kVector: packs of 8 stand at multiples of 8 in the whole matrix, so that each needs one Philox call.
template <bool kVector>
__global__ void AdamWBf16Kernel(AdamWRule rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g,
                                float* m, float* v, RandomKey key, WholeIndex index) {
  if (decision->apply == 0) return;
  const AdamWStep s = StepOf(rule, *decision);
  const float keep = rule.keep;
  int64_t i;
  if (kVector && OwnsWholePack<8>(n, &i)) {
    const Random4 random = Philox(key, static_cast<uint64_t>(index.Of(i) / kRandomsPerCall), 0);
    Pack<Bf16, 8> weights = LoadPack<Bf16, 8>(p + i);
    for (int part = 0; part < 8; part += 4) {
      const int64_t at = i + part;
      Pack<float, 4> first = LoadPack<float, 4>(m + at), second = LoadPack<float, 4>(v + at);
      const Pack<float, 4> gradients = LoadPack<float, 4>(g + at);
      for (int j = 0; j < 4; ++j) {
        Bf16& weight = weights.value[part + j];
        const float updated =
            AdamWElement(s, keep, ToFloat(weight), gradients.value[j], &first.value[j], &second.value[j]);
        weight = StochasticRoundToBf16(updated, RandomBits(random, part + j));
      }
      StorePack(m + at, first);
      StorePack(v + at, second);
    }
    StorePack(p + i, weights);
    return;
  }
  ForOwnElements<kVector ? 8 : 1>(n, [&](int64_t k) {
    const int64_t element = index.Of(k);
    const Random4 random = Philox(key, static_cast<uint64_t>(element / kRandomsPerCall), 0);
    const float updated = AdamWElement(s, keep, ToFloat(p[k]), g[k], &m[k], &v[k]);
    p[k] = StochasticRoundToBf16(updated, RandomBits(random, static_cast<int>(element % kRandomsPerCall)));
  });
}

__global__ void SgdKernel(SgdRule rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
                          float* velocity, Bf16* copy) {
  if (decision->apply == 0) return;
  const float scale = static_cast<float>(decision->clip_factor);
  ForOwnElements<1>(n, [&](int64_t i) {
    float step = g[i] * scale;
    if (velocity != nullptr) {
      step += rule.momentum * velocity[i];
      velocity[i] = step;
    }
    p[i] = p[i] * rule.keep - rule.rate * step;
    if (copy != nullptr) Store(&copy[i], p[i]);
  });
}

// p[i] = element(i, p[i]); a rule reads and writes its own arrays in order, one element per thread.
template <typename Element>
__global__ void ElementKernel(Element element, const UpdateDecision* decision, int64_t n, float* p, Bf16* copy) {
  if (decision->apply == 0) return;
  ForOwnElements<1>(n, [&](int64_t i) {
    p[i] = element(i, p[i]);
    if (copy != nullptr) Store(&copy[i], p[i]);
  });
}

template <typename Element>
__global__ void ElementBf16Kernel(Element element, const UpdateDecision* decision, int64_t n, Bf16* p, RandomKey key,
                                  WholeIndex index) {
  if (decision->apply == 0) return;
  ForOwnElements<1>(n, [&](int64_t i) {
    const int64_t whole = index.Of(i);
    const Random4 random = Philox(key, static_cast<uint64_t>(whole / kRandomsPerCall), 0);
    p[i] =
        StochasticRoundToBf16(element(i, ToFloat(p[i])), RandomBits(random, static_cast<int>(whole % kRandomsPerCall)));
  });
}

// Lion's gradient is scaled by the decision, which lies on the device.
struct ScaledLion {
  LionElement element;
  const UpdateDecision* decision;
  __device__ float operator()(int64_t i, float p) const {
    LionElement scaled = element;
    scaled.scale = static_cast<float>(decision->clip_factor);
    return scaled(i, p);
  }
};

__global__ void MuonMomentumKernel(MuonMomentumRule rule, const UpdateDecision* decision, int64_t n, const float* g,
                                   float* mean, float* out) {
  const bool apply = decision->apply != 0;
  const float scale = static_cast<float>(decision->clip_factor);
  ForOwnElements<1>(n, [&](int64_t i) { out[i] = apply ? MuonMomentumElement(rule, g[i] * scale, &mean[i]) : 0.0f; });
}

// The largest over the threads of a block, in every thread; `shared`: blockDim.x values.
__device__ inline float BlockMax(float value, float* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  const float largest = shared[0];
  __syncthreads();
  return largest;
}

__device__ inline uint8_t MomentCode(float value, float absmax, const uint8_t* codes) {
  return absmax == 0 ? 0 : codes[MomentBin(value * (1.0f / absmax))];
}

// A block of threads updates a block of moments, each an element. T: float, with a copy; or Bf16, rounded at random.
template <typename T>
__global__ void AdamW8Kernel(AdamWRule rule, const UpdateDecision* decision, int64_t n, T* p, const float* g,
                             MomentArrays moments, MomentMaps maps, Bf16* copy, RandomKey key, WholeIndex index) {
  __shared__ float shared[kMomentBlock];
  if (decision->apply == 0) return;
  const AdamWStep s = StepOf(rule, *decision);
  const int64_t block = blockIdx.x, i = block * kMomentBlock + threadIdx.x;
  const bool inside = i < n;
  float first = 0, second = 0;
  if (inside) {
    const float gradient = g[i] * s.gradient_scale;
    first = NextFirstMoment(s, maps.first[moments.first[i]] * moments.first_absmax[block], gradient);
    second = NextSecondMoment(s, maps.second[moments.second[i]] * moments.second_absmax[block], gradient);
    const float weight = AdamWWeight(s, rule.keep, Load(p[i]), first, second);
    if constexpr (sizeof(T) == sizeof(float)) {
      p[i] = weight;
      if (copy != nullptr) Store(&copy[i], weight);
    } else {
      const int64_t whole = index.Of(i);
      const Random4 random = Philox(key, static_cast<uint64_t>(whole / kRandomsPerCall), 0);
      p[i] = StochasticRoundToBf16(weight, RandomBits(random, static_cast<int>(whole % kRandomsPerCall)));
    }
  }
  // Every thread has read the old scales before the first maximum is known.
  const float first_absmax = BlockMax(fabsf(first), shared), second_absmax = BlockMax(second, shared);
  if (threadIdx.x == 0) {
    moments.first_absmax[block] = first_absmax;
    moments.second_absmax[block] = second_absmax;
  }
  if (!inside) return;
  moments.first[i] = MomentCode(first, first_absmax, maps.first_codes);
  moments.second[i] = MomentCode(second, second_absmax, maps.second_codes);
}

template <int kCount>
__global__ void SquaredNormKernel(int64_t n, const float* x, double* partial) {
  __shared__ double shared[33];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kElementsPerPart;
  const int64_t end = begin + kElementsPerPart < n ? begin + kElementsPerPart : n;
  const int64_t whole_end = begin + (end - begin) / kCount * kCount;
  double sum = 0;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kCount; i < whole_end;
       i += static_cast<int64_t>(blockDim.x) * kCount) {
    const Pack<float, kCount> pack = LoadPack<float, kCount>(x + i);
    for (int j = 0; j < kCount; ++j) sum += static_cast<double>(pack.value[j]) * static_cast<double>(pack.value[j]);
  }
  for (int64_t i = whole_end + threadIdx.x; i < end; i += blockDim.x)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void SumPartsKernel(int64_t parts, const double* partial, double* sum) {
  __shared__ double shared[33];
  double own = 0;
  for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) own += partial[i];
  own = BlockSum(own, shared);
  if (threadIdx.x == 0) *sum = own;
}

}  // namespace

void LaunchAdamW(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g, float* m,
                 float* v, Bf16* copy, Stream stream) {
  if (n == 0) return;
  if (Aligned(0, p, g, m, v, copy)) {
    AdamWKernel<true><<<Blocks(n, 4), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, p, g, m, v, copy);
  } else {
    AdamWKernel<false><<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, p, g, m, v, copy);
  }
  CheckLaunch("adamw");
}

void LaunchAdamWBf16(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g,
                     float* m, float* v, RandomKey key, const WholeIndex& index, Stream stream) {
  if (n == 0) return;
  if (Aligned(0, p, g, m, v) && index.KeepsPacks(kRandomsPerCall)) {
    AdamWBf16Kernel<true><<<Blocks(n, 8), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, p, g, m, v, key, index);
  } else {
    AdamWBf16Kernel<false><<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, p, g, m, v, key, index);
  }
  CheckLaunch("adamw_bf16");
}

void LaunchSgd(const SgdRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
               float* velocity, Bf16* copy, Stream stream) {
  if (n == 0) return;
  SgdKernel<<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, p, g, velocity, copy);
  CheckLaunch("sgd");
}

void LaunchLion(const LionRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g, float* m,
                Bf16* copy, Stream stream) {
  if (n == 0) return;
  const ScaledLion lion = {{rule, g, m}, decision};
  ElementKernel<ScaledLion><<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(lion, decision, n, p, copy);
  CheckLaunch("lion");
}

void LaunchLionBf16(const LionRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g, float* m,
                    RandomKey key, const WholeIndex& index, Stream stream) {
  if (n == 0) return;
  const ScaledLion lion = {{rule, g, m}, decision};
  ElementBf16Kernel<ScaledLion><<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(lion, decision, n, p, key, index);
  CheckLaunch("lion_bf16");
}

void LaunchDirection(const DirectionRule& rule, const UpdateDecision* decision, int64_t n, float* p,
                     const float* direction, Bf16* copy, Stream stream) {
  if (n == 0) return;
  const DirectionElement element = {rule, direction};
  ElementKernel<DirectionElement><<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(element, decision, n, p, copy);
  CheckLaunch("direction");
}

void LaunchDirectionBf16(const DirectionRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p,
                         const float* direction, RandomKey key, const WholeIndex& index, Stream stream) {
  if (n == 0) return;
  const DirectionElement element = {rule, direction};
  ElementBf16Kernel<DirectionElement>
      <<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(element, decision, n, p, key, index);
  CheckLaunch("direction_bf16");
}

void LaunchMuonMomentum(const MuonMomentumRule& rule, const UpdateDecision* decision, int64_t n, const float* g,
                        float* mean, float* out, Stream stream) {
  if (n == 0) return;
  MuonMomentumKernel<<<Blocks(n, 1), kThreads, 0, StreamOf(stream)>>>(rule, decision, n, g, mean, out);
  CheckLaunch("muon_momentum");
}

void LaunchAdamW8(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
                  const MomentArrays& moments, const MomentMaps& maps, Bf16* copy, Stream stream) {
  if (n == 0) return;
  AdamW8Kernel<float><<<Blocks(n, 1), kMomentBlock, 0, StreamOf(stream)>>>(rule, decision, n, p, g, moments, maps, copy,
                                                                           RandomKey(), WholeIndex());
  CheckLaunch("adamw8");
}

void LaunchAdamW8Bf16(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g,
                      const MomentArrays& moments, const MomentMaps& maps, RandomKey key, const WholeIndex& index,
                      Stream stream) {
  if (n == 0) return;
  AdamW8Kernel<Bf16><<<Blocks(n, 1), kMomentBlock, 0, StreamOf(stream)>>>(rule, decision, n, p, g, moments, maps,
                                                                          static_cast<Bf16*>(nullptr), key, index);
  CheckLaunch("adamw8_bf16");
}

int64_t SquaredNormParts(int64_t n) { return (n + kElementsPerPart - 1) / kElementsPerPart; }

void LaunchSquaredNorm(int64_t n, const float* x, double* scratch, double* sum, Stream stream) {
  const unsigned parts = static_cast<unsigned>(SquaredNormParts(n));
  if (parts > 0) {
    if (Aligned(0, x)) {
      SquaredNormKernel<4><<<parts, kThreads, 0, StreamOf(stream)>>>(n, x, scratch);
    } else {
      SquaredNormKernel<1><<<parts, kThreads, 0, StreamOf(stream)>>>(n, x, scratch);
    }
    CheckLaunch("squared_norm");
  }
  SumPartsKernel<<<1, kThreads, 0, StreamOf(stream)>>>(parts, scratch, sum);
  CheckLaunch("squared_norm, sum");
}

}  // namespace trireme::cuda
