// kernels/cuda/device.cuh
// What the kernels share: 16-byte accesses, conversions, and sums over a block in a fixed order.
#ifndef TRIREME_KERNELS_CUDA_DEVICE_CUH_
#define TRIREME_KERNELS_CUDA_DEVICE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/launchers.h"

namespace trireme::cuda {

// kCount values moved by one instruction. The address must be a multiple of the size.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T value[kCount];
};

template <typename T>
inline constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));

__device__ inline float Load(float value) { return value; }
__device__ inline float Load(Bf16 value) { return ToFloat(value); }
__device__ inline void Store(float* out, float value) { *out = value; }
// The same bits as RoundToBf16 (but for the payload of a NaN), in one instruction.
__device__ inline void Store(Bf16* out, float value) { out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

template <typename T, int kCount>
__device__ inline Pack<T, kCount> LoadPack(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
template <typename T, int kCount>
__device__ inline void StorePack(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// The sum over all threads of the block, in every thread. C: float or double. blockDim.x is a multiple of 32, at most
// 1024. Adds in an order that depends on blockDim.x only. `shared`: 33 values; the next sum may use them at once.
template <typename C>
__device__ inline C BlockSum(C value, C* shared) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (warp == 0) {
    C sum = lane < warps ? shared[lane] : C(0);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    if (lane == 0) shared[32] = sum;
  }
  __syncthreads();
  return shared[32];
}

// True when rows of `bytes` that lie one after another from each pointer can be accessed by 16 bytes.
inline bool Aligned(int64_t bytes) { return bytes % 16 == 0; }
template <typename... Pointers>
inline bool Aligned(int64_t bytes, const void* first, Pointers... rest) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && Aligned(bytes, rest...);
}

// Threads for a row of `packs` packs: enough for two packs each, 32 to `most`.
inline int ThreadsForRow(int64_t packs, int most) {
  int threads = 32;
  while (threads < most && threads * 2 < packs) threads *= 2;
  return threads;
}

inline cudaStream_t StreamOf(Stream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace trireme::cuda

#endif  // TRIREME_KERNELS_CUDA_DEVICE_CUH_
