// tests/kernels/cuda_emulation/cuda_runtime.h
// Stands in for the CUDA toolkit's header where kernels/cuda/*.cu are compiled as plain C++, so that their indexing,
// sums and barriers are tested on machines without a GPU (tests/kernels/CMakeLists.txt rewrites the launches). Memory
// is the host's. A launch runs its blocks one after another and is done when it returns; a block's threads are fibers
// that run one at a time, from barrier to barrier, warp by warp: ascending in every other launch, descending in the
// others, so that a missing barrier gives two results. Ends the process where a warp's threads meet different barriers
// or a shuffle lacks one. What it cannot show: speed, memory coalescing, the rounding of nvcc's arithmetic (it fuses
// multiply-adds), streams.
#ifndef TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_
#define TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

struct dim3 {
  dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
using cudaStream_t = void*;

namespace emulated {

extern int64_t launches;  // so far
extern dim3 thread_index, block_index, block_size, grid_size;

void* DynamicSharedBytes();
template <typename T>
T* DynamicShared() {
  return static_cast<T*>(DynamicSharedBytes());
}

void WaitForBlock();
// All 32 threads of a warp must come here: gives each what the thread with another lane brought. size: at most 8 bytes.
void Exchange(const void* own, void* others, size_t size, int lane_mask);

void Run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& thread);

template <typename... Arguments>
struct Call {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  std::tuple<Arguments...> arguments;
};

// kernel<<<grid, block, bytes, stream>>>(arguments) is rewritten to kernel->*Grid(grid, block, bytes,
// stream)(arguments).
class Grid {
 public:
  Grid(dim3 grid, dim3 block, int64_t dynamic_shared_bytes, cudaStream_t)
      : grid_(grid), block_(block), bytes_(static_cast<size_t>(dynamic_shared_bytes)) {}
  template <typename... Arguments>
  Call<Arguments...> operator()(const Arguments&... arguments) const {
    return {grid_, block_, bytes_, {arguments...}};
  }

 private:
  dim3 grid_, block_;
  size_t bytes_;
};

template <typename... Parameters, typename... Arguments>
void operator->*(void (*kernel)(Parameters...), const Call<Arguments...>& call) {
  Run(call.grid, call.block, call.dynamic_shared_bytes, [&] { std::apply(kernel, call.arguments); });
}

}  // namespace emulated

#define threadIdx (::emulated::thread_index)
#define blockIdx (::emulated::block_index)
#define blockDim (::emulated::block_size)
#define gridDim (::emulated::grid_size)

inline void __syncthreads() { ::emulated::WaitForBlock(); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  T result;
  ::emulated::Exchange(&value, &result, sizeof(T), lane_mask);
  return result;
}
[[noreturn]] void __trap();

#endif  // TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_
