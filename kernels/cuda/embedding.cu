// Rows are gathered and scattered as they are; the gradient is deterministic because one block adds all rows of a
// token, in order.
#include <cstdio>

#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline void RefuseToken(int64_t token, int64_t vocab) {
  if (token >= 0 && token < vocab) return;
  if (threadIdx.x == 0)
    printf("embedding: token %lld outside the %lld rows\n", static_cast<long long>(token),
           static_cast<long long>(vocab));
  __trap();
}

template <typename V>
__global__ void EmbeddingKernel(int64_t vocab, int64_t row_bytes, const int64_t* tokens, const char* weight,
                                char* out) {
  const int64_t token = tokens[blockIdx.x];
  RefuseToken(token, vocab);
  const V* from = reinterpret_cast<const V*>(weight + token * row_bytes);
  V* to = reinterpret_cast<V*>(out + static_cast<int64_t>(blockIdx.x) * row_bytes);
  const int64_t count = row_bytes / static_cast<int64_t>(sizeof(V));
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// Block (i, y): if sorted[i] is the first of its token, adds all its rows of dy; y: which kThreads * kCount columns.
template <typename T, int kCount>
__global__ void EmbeddingGradientKernel(int64_t rows, int64_t vocab, int64_t width, const int64_t* sorted,
                                        const int64_t* order, const T* dy, float* accumulator) {
  const int64_t begin = blockIdx.x;
  const int64_t token = sorted[begin];
  if ((begin > 0 && sorted[begin - 1] == token) || token < 0 || token >= vocab) return;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  if (column >= width) return;
  Pack<float, kCount> sum = LoadPack<float, kCount>(accumulator + token * width + column);
  for (int64_t i = begin; i < rows && sorted[i] == token; ++i) {
    const Pack<T, kCount> row = LoadPack<T, kCount>(dy + order[i] * width + column);
    for (int j = 0; j < kCount; ++j) sum.value[j] += Load(row.value[j]);
  }
  StorePack(accumulator + token * width + column, sum);
}

template <typename T, int kCount>
void Gradient(int64_t rows, int64_t vocab, int64_t width, const int64_t* sorted, const int64_t* order, const void* dy,
              float* accumulator, Stream stream) {
  const int threads = ThreadsForRow(width / kCount, kThreads);
  const int64_t columns = static_cast<int64_t>(threads) * kCount;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((width + columns - 1) / columns));
  EmbeddingGradientKernel<T, kCount><<<grid, threads, 0, StreamOf(stream)>>>(rows, vocab, width, sorted, order,
                                                                             static_cast<const T*>(dy), accumulator);
}

}  // namespace

void LaunchEmbedding(int64_t rows, int64_t vocab, int64_t row_bytes, const int64_t* tokens, const void* weight,
                     void* out, Stream stream) {
  if (rows == 0) return;
  const unsigned blocks = static_cast<unsigned>(rows);
  const char* from = static_cast<const char*>(weight);
  char* to = static_cast<char*>(out);
  if (Aligned(row_bytes, weight, out)) {
    EmbeddingKernel<uint4>
        <<<blocks, ThreadsForRow(row_bytes / 16, kThreads), 0, StreamOf(stream)>>>(vocab, row_bytes, tokens, from, to);
  } else {
    EmbeddingKernel<uint16_t>
        <<<blocks, ThreadsForRow(row_bytes / 2, kThreads), 0, StreamOf(stream)>>>(vocab, row_bytes, tokens, from, to);
  }
  CheckLaunch("embedding");
}

void LaunchEmbeddingGradient(Storage storage, int64_t rows, int64_t vocab, int64_t width, const int64_t* sorted,
                             const int64_t* order, const void* dy, float* accumulator, Stream stream) {
  if (rows == 0) return;
  const bool aligned = width % 4 == 0 && Aligned(0, dy, accumulator);
  if (storage == Storage::kFloat32) {
    (aligned ? &Gradient<float, 4> : &Gradient<float, 1>)(rows, vocab, width, sorted, order, dy, accumulator, stream);
  } else {
    (aligned ? &Gradient<Bf16, 4> : &Gradient<Bf16, 1>)(rows, vocab, width, sorted, order, dy, accumulator, stream);
  }
  CheckLaunch("embedding_gradient");
}

}  // namespace trireme::cuda
