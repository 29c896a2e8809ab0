// One block per row of logits: one pass for the running maximum and sum (arXiv 1805.02867), one that writes the
// gradient.
#include <cstdio>

#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kSumThreads = 256;

// sum = sum over seen x of exp(x - largest).
struct Softmax {
  float largest, sum;
};

__device__ inline Softmax Merge(Softmax a, Softmax b) {
  const float largest = a.largest > b.largest ? a.largest : b.largest;
  const float base = largest == -INFINITY ? 0.0f : largest;
  return {largest, a.sum * Exp(a.largest - base) + b.sum * Exp(b.largest - base)};
}

__device__ inline Softmax WarpMerge(Softmax s) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const Softmax other = {__shfl_xor_sync(0xFFFFFFFFu, s.largest, offset),
                           __shfl_xor_sync(0xFFFFFFFFu, s.sum, offset)};
    s = Merge(s, other);
  }
  return s;
}

__device__ inline Softmax BlockMerge(Softmax s) {
  __shared__ Softmax shared[33];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  s = WarpMerge(s);
  if (lane == 0) shared[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? shared[lane] : Softmax{-INFINITY, 0.0f};
    s = WarpMerge(s);
    if (lane == 0) shared[32] = s;
  }
  __syncthreads();
  return shared[32];
}

template <typename T, int kCount>
__global__ void CrossEntropyKernel(CrossEntropyArguments a) {
  const int64_t target = a.targets[blockIdx.x], columns = a.columns;
  const float* row = a.logits + static_cast<int64_t>(blockIdx.x) * columns;
  T* out = a.gradient == nullptr ? nullptr : static_cast<T*>(a.gradient) + static_cast<int64_t>(blockIdx.x) * columns;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kCount, step = static_cast<int64_t>(blockDim.x) * kCount;
  if (target >= a.vocab) {
    if (threadIdx.x == 0)
      printf("loss head: target %lld outside the %lld rows\n", static_cast<long long>(target),
             static_cast<long long>(a.vocab));
    __trap();
  }
  if (target < 0) {
    if (threadIdx.x == 0 && !a.lse_given) a.lse[blockIdx.x] = a.of_target[blockIdx.x] = 0.0f;
    if (out == nullptr) return;
    for (int64_t i = first; i < columns; i += step) StorePack(out + i, Pack<T, kCount>{});
    return;
  }
  const int64_t column = target - a.first_id;
  float row_lse;
  if (a.lse_given) {
    row_lse = a.lse[blockIdx.x];
  } else {
    Softmax s = {-INFINITY, 0.0f};
    for (int64_t i = first; i < columns; i += step) {
      const Pack<float, kCount> x = LoadPack<float, kCount>(row + i);
      Softmax part = {x.value[0], 0.0f};
      for (int j = 1; j < kCount; ++j) part.largest = x.value[j] > part.largest ? x.value[j] : part.largest;
      const float base = part.largest == -INFINITY ? 0.0f : part.largest;
      for (int j = 0; j < kCount; ++j) part.sum += Exp(x.value[j] - base);
      s = Merge(s, part);
    }
    s = BlockMerge(s);
    row_lse = s.largest + logf(s.sum);
    if (threadIdx.x == 0) {
      a.lse[blockIdx.x] = row_lse;
      a.of_target[blockIdx.x] = column >= 0 && column < columns ? row[column] : 0.0f;
    }
  }
  if (out == nullptr) return;
  __syncthreads();  // The target's logit is read before the gradient may overwrite it.
  const float factor = a.scale * (1.0f + 2.0f * a.z_loss * row_lse);
  for (int64_t i = first; i < columns; i += step) {
    const Pack<float, kCount> x = LoadPack<float, kCount>(row + i);
    Pack<T, kCount> d;
    for (int j = 0; j < kCount; ++j)
      Store(&d.value[j], Exp(x.value[j] - row_lse) * factor - (i + j == column ? a.scale : 0.0f));
    StorePack(out + i, d);
  }
}

__global__ void AddLossSumsKernel(int64_t rows, const int64_t* targets, const float* lse, const float* of_target,
                                  double* sums) {
  __shared__ double shared[33];
  double loss_sum = 0, z_sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
    if (targets[r] < 0) continue;
    loss_sum += static_cast<double>(lse[r] - of_target[r]);
    z_sum += static_cast<double>(lse[r]) * static_cast<double>(lse[r]);
  }
  loss_sum = BlockSum(loss_sum, shared);
  z_sum = BlockSum(z_sum, shared);
  if (threadIdx.x != 0) return;
  sums[0] += loss_sum;
  sums[1] += z_sum;
}

template <typename T, int kCount>
void Rows(const CrossEntropyArguments& a, Stream stream) {
  CrossEntropyKernel<T, kCount>
      <<<static_cast<unsigned>(a.rows), ThreadsForRow(a.columns / kCount, kMaxThreads), 0, StreamOf(stream)>>>(a);
}

}  // namespace

void LaunchCrossEntropy(const CrossEntropyArguments& a, Stream stream) {
  if (a.rows == 0) return;
  const bool aligned = a.columns > 0 && Aligned(a.columns * 4, a.logits, a.gradient);
  if (a.gradient_storage == Storage::kFloat32) {
    (aligned ? &Rows<float, 4> : &Rows<float, 1>)(a, stream);
  } else {
    (aligned ? &Rows<Bf16, 4> : &Rows<Bf16, 1>)(a, stream);
  }
  CheckLaunch("cross_entropy");
}

void LaunchAddLossSums(int64_t rows, const int64_t* targets, const float* lse, const float* of_target, double* sums,
                       Stream stream) {
  if (rows == 0) return;
  AddLossSumsKernel<<<1, kSumThreads, 0, StreamOf(stream)>>>(rows, targets, lse, of_target, sums);
  CheckLaunch("add_loss_sums");
}

}  // namespace trireme::cuda
