// One block per row forward; backward, one block per part of the rows, so that the weight's gradient is summed in an
// order that depends on the shape only: row after row within a part, then over the parts.
#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int64_t kMaxParts = 512;
constexpr int64_t kMinRowsPerPart = 4;
constexpr int64_t kSharedBytes = 48 * 1024 - 1024;  // Available to every kernel without asking, less the block sums.
// The second stage: a block is kColumns columns by kLanes lanes, each lane adding every kLanes-th part.
constexpr int kColumns = 32;
constexpr int kLanes = 8;

// y[i] = h[i] * scale * (weight[i] + offset) for the pack at i.
template <typename T, int kCount>
__device__ inline void WriteNormed(const Pack<T, kCount>& h, const T* weight, float offset, float scale, T* y) {
  const Pack<T, kCount> w = LoadPack<T, kCount>(weight);
  Pack<T, kCount> out;
  for (int j = 0; j < kCount; ++j) Store(&out.value[j], Load(h.value[j]) * scale * (Load(w.value[j]) + offset));
  StorePack(y, out);
}

template <typename T, int kCount>
__global__ void RmsNormKernel(int64_t width, const T* x, const T* delta, const T* weight, float offset, float eps, T* h,
                              T* y, float* rstd) {
  __shared__ float shared[33];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kCount, step = static_cast<int64_t>(blockDim.x) * kCount;
  float sum = 0;
  for (int64_t i = first; i < width; i += step) {
    Pack<T, kCount> value = LoadPack<T, kCount>(x + row + i);
    if (delta != nullptr) {
      const Pack<T, kCount> d = LoadPack<T, kCount>(delta + row + i);
      for (int j = 0; j < kCount; ++j) Store(&value.value[j], Load(value.value[j]) + Load(d.value[j]));
      StorePack(h + row + i, value);
    }
    for (int j = 0; j < kCount; ++j) sum += Load(value.value[j]) * Load(value.value[j]);
  }
  const float scale = 1.0f / sqrtf(BlockSum(sum, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  // Each thread reads again what it read or wrote itself: from cache, and ordered.
  const T* source = delta != nullptr ? h : x;
  for (int64_t i = first; i < width; i += step)
    WriteNormed(LoadPack<T, kCount>(source + row + i), weight + i, offset, scale, y + row + i);
}

template <typename T, int kCount>
__global__ void RmsNormAgainKernel(int64_t width, const T* h, const float* rstd, const T* weight, float offset, T* y) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  const float scale = rstd[blockIdx.x];
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kCount; i < width;
       i += static_cast<int64_t>(blockDim.x) * kCount) {
    WriteNormed(LoadPack<T, kCount>(h + row + i), weight + i, offset, scale, y + row + i);
  }
}

// Block b: rows [b * rows_per_part, ...). partial row b receives this part's weight gradient; kept in shared memory
// meanwhile if it fits there. Columns belong to threads, so nothing is added by two.
template <typename T, int kCount>
__global__ void RmsNormBackwardKernel(int64_t rows, int64_t rows_per_part, int64_t width, const T* h, const float* rstd,
                                      const T* weight, float offset, const T* dy, const T* d_h, T* dx, float* partial,
                                      bool in_shared) {
  constexpr int kWide = kCount < 4 ? kCount : 4;        // floats of one access
  extern __shared__ __align__(16) float shared_sums[];  // [width]
  __shared__ float shared[33];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * rows_per_part;
  const int64_t end = begin + rows_per_part < rows ? begin + rows_per_part : rows;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kCount, step = static_cast<int64_t>(blockDim.x) * kCount;
  float* own_partial = partial == nullptr ? nullptr : partial + static_cast<int64_t>(blockIdx.x) * width;
  float* sums = in_shared ? shared_sums : own_partial;
  if (partial != nullptr) {
    for (int64_t i = first; i < width; i += step) {
      for (int j = 0; j < kCount; j += kWide) StorePack(sums + i + j, Pack<float, kWide>{});
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = r * width;
    float dot = 0;
    for (int64_t i = first; i < width; i += step) {
      const Pack<T, kCount> g = LoadPack<T, kCount>(dy + row + i), w = LoadPack<T, kCount>(weight + i),
                            x = LoadPack<T, kCount>(h + row + i);
      for (int j = 0; j < kCount; ++j) dot += Load(g.value[j]) * (Load(w.value[j]) + offset) * Load(x.value[j]);
    }
    const float scale = rstd[r];
    const float correction = BlockSum(dot, shared) * scale * scale / static_cast<float>(width);
    for (int64_t i = first; i < width; i += step) {
      const Pack<T, kCount> g = LoadPack<T, kCount>(dy + row + i), w = LoadPack<T, kCount>(weight + i),
                            x = LoadPack<T, kCount>(h + row + i);
      Pack<T, kCount> residual = {}, out;
      if (d_h != nullptr) residual = LoadPack<T, kCount>(d_h + row + i);
      for (int j = 0; j < kCount; ++j) {
        Store(&out.value[j], Load(residual.value[j]) + scale * (Load(g.value[j]) * (Load(w.value[j]) + offset) -
                                                                Load(x.value[j]) * correction));
      }
      StorePack(dx + row + i, out);
      if (partial == nullptr) continue;
      for (int j = 0; j < kCount; j += kWide) {
        Pack<float, kWide> sum = LoadPack<float, kWide>(sums + i + j);
        for (int k = 0; k < kWide; ++k) sum.value[k] += Load(g.value[j + k]) * Load(x.value[j + k]) * scale;
        StorePack(sums + i + j, sum);
      }
    }
  }
  if (partial == nullptr || !in_shared) return;
  for (int64_t i = first; i < width; i += step) {
    for (int j = 0; j < kCount; j += kWide) StorePack(own_partial + i + j, LoadPack<float, kWide>(sums + i + j));
  }
}

__global__ void AddPartsKernel(int64_t parts, int64_t width, const float* partial, float* d_weight) {
  __shared__ float sums[kLanes][kColumns];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0;
  if (column < width) {
    for (int64_t part = threadIdx.y; part < parts; part += kLanes) sum += partial[part * width + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane][threadIdx.x];
  d_weight[column] += total;
}

int64_t RowsPerPart(int64_t rows) {
  const int64_t even = (rows + kMaxParts - 1) / kMaxParts;
  return even > kMinRowsPerPart ? even : kMinRowsPerPart;
}

template <typename T, int kCount>
void Forward(int64_t rows, int64_t width, const void* x, const void* delta, const void* weight, float offset, float eps,
             void* h, void* y, float* rstd, Stream stream) {
  const int threads = ThreadsForRow((width + kCount - 1) / kCount, kMaxThreads);
  RmsNormKernel<T, kCount><<<static_cast<unsigned>(rows), threads, 0, StreamOf(stream)>>>(
      width, static_cast<const T*>(x), static_cast<const T*>(delta), static_cast<const T*>(weight), offset, eps,
      static_cast<T*>(h), static_cast<T*>(y), rstd);
}

template <typename T, int kCount>
void Again(int64_t rows, int64_t width, const void* h, const float* rstd, const void* weight, float offset, void* y,
           Stream stream) {
  const int threads = ThreadsForRow((width + kCount - 1) / kCount, kMaxThreads);
  RmsNormAgainKernel<T, kCount><<<static_cast<unsigned>(rows), threads, 0, StreamOf(stream)>>>(
      width, static_cast<const T*>(h), rstd, static_cast<const T*>(weight), offset, static_cast<T*>(y));
}

template <typename T, int kCount>
void Backward(int64_t rows, int64_t width, const void* h, const float* rstd, const void* weight, float offset,
              const void* dy, const void* d_h, void* dx, float* scratch, Stream stream) {
  const int threads = ThreadsForRow((width + kCount - 1) / kCount, kMaxThreads);
  const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
  const bool in_shared = scratch != nullptr && bytes <= kSharedBytes;
  RmsNormBackwardKernel<T, kCount>
      <<<static_cast<unsigned>(RmsNormParts(rows)), threads, in_shared ? bytes : 0, StreamOf(stream)>>>(
          rows, RowsPerPart(rows), width, static_cast<const T*>(h), rstd, static_cast<const T*>(weight), offset,
          static_cast<const T*>(dy), static_cast<const T*>(d_h), static_cast<T*>(dx), scratch, in_shared);
}

}  // namespace

void LaunchRmsNorm(Storage storage, int64_t rows, int64_t width, const void* x, const void* delta, const void* weight,
                   float offset, float eps, void* h, void* y, float* rstd, Stream stream) {
  if (rows == 0) return;
  if (storage == Storage::kFloat32) {
    const bool aligned = Aligned(width * 4, x, delta, weight, h, y);
    (aligned ? &Forward<float, 4> : &Forward<float, 1>)(rows, width, x, delta, weight, offset, eps, h, y, rstd, stream);
  } else {
    const bool aligned = Aligned(width * 2, x, delta, weight, h, y);
    (aligned ? &Forward<Bf16, 8> : &Forward<Bf16, 1>)(rows, width, x, delta, weight, offset, eps, h, y, rstd, stream);
  }
  CheckLaunch("rms_norm");
}

void LaunchRmsNormAgain(Storage storage, int64_t rows, int64_t width, const void* h, const float* rstd,
                        const void* weight, float offset, void* y, Stream stream) {
  if (rows == 0) return;
  if (storage == Storage::kFloat32) {
    (Aligned(width * 4, h, weight, y) ? &Again<float, 4> : &Again<float, 1>)(rows, width, h, rstd, weight, offset, y,
                                                                             stream);
  } else {
    (Aligned(width * 2, h, weight, y) ? &Again<Bf16, 8> : &Again<Bf16, 1>)(rows, width, h, rstd, weight, offset, y,
                                                                           stream);
  }
  CheckLaunch("rms_norm_again");
}

int64_t RmsNormParts(int64_t rows) { return (rows + RowsPerPart(rows) - 1) / RowsPerPart(rows); }

void LaunchRmsNormBackward(Storage storage, int64_t rows, int64_t width, const void* h, const float* rstd,
                           const void* weight, float offset, const void* dy, const void* d_h, void* dx, float* scratch,
                           float* d_weight, Stream stream) {
  if (rows == 0) return;
  float* partial = d_weight == nullptr ? nullptr : scratch;
  if (storage == Storage::kFloat32) {
    const bool aligned = Aligned(width * 4, h, weight, dy, d_h, dx, partial);
    (aligned ? &Backward<float, 4> : &Backward<float, 1>)(rows, width, h, rstd, weight, offset, dy, d_h, dx, partial,
                                                          stream);
  } else {
    const bool aligned = Aligned(width * 2, h, weight, dy, d_h, dx, partial);
    (aligned ? &Backward<Bf16, 8> : &Backward<Bf16, 1>)(rows, width, h, rstd, weight, offset, dy, d_h, dx, partial,
                                                        stream);
  }
  CheckLaunch("rms_norm_backward");
  if (d_weight == nullptr) return;
  const unsigned blocks = static_cast<unsigned>((width + kColumns - 1) / kColumns);
  AddPartsKernel<<<blocks, dim3(kColumns, kLanes), 0, StreamOf(stream)>>>(RmsNormParts(rows), width, partial, d_weight);
  CheckLaunch("rms_norm_backward, weight");
}

}  // namespace trireme::cuda
