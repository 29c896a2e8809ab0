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
__global__ void CrossEntropyKernel(int64_t vocab, const float* logits, const int64_t* targets, float scale,
                                   float z_loss, float* loss, float* lse, T* gradient) {
  const int64_t target = targets[blockIdx.x];
  const float* row = logits + static_cast<int64_t>(blockIdx.x) * vocab;
  T* out = gradient == nullptr ? nullptr : gradient + static_cast<int64_t>(blockIdx.x) * vocab;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kCount, step = static_cast<int64_t>(blockDim.x) * kCount;
  if (target >= vocab) {
    if (threadIdx.x == 0)
      printf("loss head: target %lld outside the %lld rows\n", static_cast<long long>(target),
             static_cast<long long>(vocab));
    __trap();
  }
  if (target < 0) {
    if (threadIdx.x == 0) loss[blockIdx.x] = lse[blockIdx.x] = 0.0f;
    if (out == nullptr) return;
    for (int64_t i = first; i < vocab; i += step) StorePack(out + i, Pack<T, kCount>{});
    return;
  }
  Softmax s = {-INFINITY, 0.0f};
  for (int64_t i = first; i < vocab; i += step) {
    const Pack<float, kCount> x = LoadPack<float, kCount>(row + i);
    Softmax part = {x.value[0], 0.0f};
    for (int j = 1; j < kCount; ++j) part.largest = x.value[j] > part.largest ? x.value[j] : part.largest;
    const float base = part.largest == -INFINITY ? 0.0f : part.largest;
    for (int j = 0; j < kCount; ++j) part.sum += Exp(x.value[j] - base);
    s = Merge(s, part);
  }
  s = BlockMerge(s);
  const float row_lse = s.largest + logf(s.sum);
  if (threadIdx.x == 0) {
    loss[blockIdx.x] = row_lse - row[target];
    lse[blockIdx.x] = row_lse;
  }
  if (out == nullptr) return;
  __syncthreads();  // The target's logit is read before the gradient may overwrite it.
  const float factor = scale * (1.0f + 2.0f * z_loss * row_lse);
  for (int64_t i = first; i < vocab; i += step) {
    const Pack<float, kCount> x = LoadPack<float, kCount>(row + i);
    Pack<T, kCount> d;
    for (int j = 0; j < kCount; ++j)
      Store(&d.value[j], Exp(x.value[j] - row_lse) * factor - (i + j == target ? scale : 0.0f));
    StorePack(out + i, d);
  }
}

__global__ void AddLossSumsKernel(int64_t rows, const float* loss, const float* lse, double* sums) {
  __shared__ double shared[33];
  double loss_sum = 0, z_sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
    loss_sum += static_cast<double>(loss[r]);
    z_sum += static_cast<double>(lse[r]) * static_cast<double>(lse[r]);
  }
  loss_sum = BlockSum(loss_sum, shared);
  z_sum = BlockSum(z_sum, shared);
  if (threadIdx.x != 0) return;
  sums[0] += loss_sum;
  sums[1] += z_sum;
}

template <typename T, int kCount>
void Rows(int64_t rows, int64_t vocab, const float* logits, const int64_t* targets, float scale, float z_loss,
          float* loss, float* lse, void* gradient, Stream stream) {
  CrossEntropyKernel<T, kCount>
      <<<static_cast<unsigned>(rows), ThreadsForRow(vocab / kCount, kMaxThreads), 0, StreamOf(stream)>>>(
          vocab, logits, targets, scale, z_loss, loss, lse, static_cast<T*>(gradient));
}

}  // namespace

void LaunchCrossEntropy(int64_t rows, int64_t vocab, const float* logits, const int64_t* targets, float scale,
                        float z_loss, float* loss, float* lse, Storage gradient_storage, void* gradient,
                        Stream stream) {
  if (rows == 0) return;
  const bool aligned = Aligned(vocab * 4, logits, gradient);
  if (gradient_storage == Storage::kFloat32) {
    (aligned ? &Rows<float, 4> : &Rows<float, 1>)(rows, vocab, logits, targets, scale, z_loss, loss, lse, gradient,
                                                  stream);
  } else {
    (aligned ? &Rows<Bf16, 4> : &Rows<Bf16, 1>)(rows, vocab, logits, targets, scale, z_loss, loss, lse, gradient,
                                                stream);
  }
  CheckLaunch("cross_entropy");
}

void LaunchAddLossSums(int64_t rows, const float* loss, const float* lse, double* sums, Stream stream) {
  if (rows == 0) return;
  AddLossSumsKernel<<<1, kSumThreads, 0, StreamOf(stream)>>>(rows, loss, lse, sums);
  CheckLaunch("add_loss_sums");
}

}  // namespace trireme::cuda
