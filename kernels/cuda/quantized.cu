#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // elements: four bytes of codes

// Eight threads share a quantized block.
template <typename T>
__global__ void Nf4DequantizeKernel(const Nf4Blocks blocks, T* out) {
  __shared__ float codes[16];
  const float values[16] = {TRIREME_NF4_CODES};
  if (threadIdx.x < 16) codes[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  const int64_t block = first / kNf4Block;
  if (block >= blocks.blocks) return;
  const float scale = ScaleOf(blocks, block, NumberOf(blocks, block));
  const Pack<uint8_t, 4> packed = LoadPack<uint8_t, 4>(blocks.packed + first / 2);
  for (int i = 0; i < 4; ++i) {
    Store(out + first + 2 * i, RoundTo(blocks.type, codes[packed.value[i] >> 4] * scale));
    Store(out + first + 2 * i + 1, RoundTo(blocks.type, codes[packed.value[i] & 15] * scale));
  }
}

// Four threads share a block.
template <typename T>
__global__ void Mxfp4DequantizeKernel(const Mxfp4Blocks blocks, T* out) {
  __shared__ float codes[16];
  const float values[16] = {TRIREME_MXFP4_CODES};
  if (threadIdx.x < 16) codes[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPerThread;
  const int64_t block = first / kMxfp4Block;
  if (block >= blocks.blocks) return;
  const float scale = Mxfp4Scale(blocks.scales[block]);
  for (int i = 0; i < kPerThread / 2; ++i) {
    const uint8_t pair = blocks.packed[first / 2 + i];
    Store(out + first + 2 * i, codes[pair >> 4] * scale);
    Store(out + first + 2 * i + 1, codes[pair & 15] * scale);
  }
}

template <typename T>
__global__ void Int8DequantizeKernel(const Int8Rows rows, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows.n) Store(out + i, Int8Value(rows.codes[i], rows.absmax[(rows.first + i) / rows.columns]));
}

unsigned Grid(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

}  // namespace

void LaunchNf4Dequantize(Storage storage, const Nf4Blocks& blocks, void* out, Stream stream) {
  const unsigned grid = Grid(blocks.blocks * (kNf4Block / kPerThread));
  if (grid == 0) return;
  if (storage == Storage::kFloat32) {
    Nf4DequantizeKernel<float><<<grid, kThreads, 0, StreamOf(stream)>>>(blocks, static_cast<float*>(out));
  } else {
    Nf4DequantizeKernel<Bf16><<<grid, kThreads, 0, StreamOf(stream)>>>(blocks, static_cast<Bf16*>(out));
  }
  CheckLaunch("nf4 dequantize");
}

void LaunchMxfp4Dequantize(Storage storage, const Mxfp4Blocks& blocks, void* out, Stream stream) {
  const unsigned grid = Grid(blocks.blocks * (kMxfp4Block / kPerThread));
  if (grid == 0) return;
  if (storage == Storage::kFloat32) {
    Mxfp4DequantizeKernel<float><<<grid, kThreads, 0, StreamOf(stream)>>>(blocks, static_cast<float*>(out));
  } else {
    Mxfp4DequantizeKernel<Bf16><<<grid, kThreads, 0, StreamOf(stream)>>>(blocks, static_cast<Bf16*>(out));
  }
  CheckLaunch("mxfp4 dequantize");
}

void LaunchInt8Dequantize(Storage storage, const Int8Rows& rows, void* out, Stream stream) {
  const unsigned grid = Grid(rows.n);
  if (grid == 0) return;
  if (storage == Storage::kFloat32) {
    Int8DequantizeKernel<float><<<grid, kThreads, 0, StreamOf(stream)>>>(rows, static_cast<float*>(out));
  } else {
    Int8DequantizeKernel<Bf16><<<grid, kThreads, 0, StreamOf(stream)>>>(rows, static_cast<Bf16*>(out));
  }
  CheckLaunch("int8 dequantize");
}

}  // namespace trireme::cuda
