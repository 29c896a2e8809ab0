#include <cstdio>

#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, int kCount>
__global__ void SwiGluKernel(int64_t width, const T* gate_up, T* out) {
  const T* gate = gate_up + static_cast<int64_t>(blockIdx.x) * 2 * width;
  const T* up = gate + width;
  T* result = out + static_cast<int64_t>(blockIdx.x) * width;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kCount; i < width;
       i += static_cast<int64_t>(blockDim.x) * kCount) {
    const Pack<T, kCount> g = LoadPack<T, kCount>(gate + i), u = LoadPack<T, kCount>(up + i);
    Pack<T, kCount> y;
    for (int j = 0; j < kCount; ++j) Store(&y.value[j], SwiGlu<float>(Load(g.value[j]), Load(u.value[j])));
    StorePack(result + i, y);
  }
}

template <typename T, int kCount>
__global__ void SwiGluBackwardKernel(int64_t width, const T* gate_up, const T* d_out, T* d_gate_up) {
  const int64_t row = static_cast<int64_t>(blockIdx.x);
  const T* gate = gate_up + row * 2 * width;
  T* d_gate = d_gate_up + row * 2 * width;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kCount; i < width;
       i += static_cast<int64_t>(blockDim.x) * kCount) {
    const Pack<T, kCount> g = LoadPack<T, kCount>(gate + i), u = LoadPack<T, kCount>(gate + width + i);
    const Pack<T, kCount> d = LoadPack<T, kCount>(d_out + row * width + i);
    Pack<T, kCount> dg, du;
    for (int j = 0; j < kCount; ++j) {
      float gate_gradient, up_gradient;
      SwiGluBackward<float>(Load(g.value[j]), Load(u.value[j]), Load(d.value[j]), &gate_gradient, &up_gradient);
      Store(&dg.value[j], gate_gradient);
      Store(&du.value[j], up_gradient);
    }
    StorePack(d_gate + i, dg);
    StorePack(d_gate + width + i, du);
  }
}

// One block per row; a thread takes kCount neighbouring pairs of one head, the first `half` pairs of a head turning.
template <typename T, int kCount>
__global__ void RopeKernel(int pairs, int half, int head_dim, bool interleaved, int64_t stride, T* x,
                           const int64_t* positions, int64_t places, const float* cosine, const float* sine,
                           float direction) {
  T* row = x + static_cast<int64_t>(blockIdx.x) * stride;
  const int64_t position = positions[blockIdx.x];
  if (position < 0 || position >= places) {
    if (threadIdx.x == 0)
      printf("rope: position %lld outside the rotation table's %lld rows\n", static_cast<long long>(position),
             static_cast<long long>(places));
    __trap();
  }
  const float* c = cosine + position * half;
  const float* s = sine + position * half;
  for (int pair = static_cast<int>(threadIdx.x) * kCount; pair < pairs; pair += static_cast<int>(blockDim.x) * kCount) {
    const int head = pair / half, i = pair - head * half;
    if (interleaved) {
      T* pair_of = row + head * head_dim + 2 * i;
      for (int j = 0; j < kCount; ++j) {
        float u = Load(pair_of[2 * j]), v = Load(pair_of[2 * j + 1]);
        Rotate<float>(&u, &v, c[i + j], s[i + j] * direction);
        Store(&pair_of[2 * j], u);
        Store(&pair_of[2 * j + 1], v);
      }
      continue;
    }
    T* a = row + head * head_dim + i;
    T* b = a + half;
    Pack<T, kCount> first = LoadPack<T, kCount>(a), second = LoadPack<T, kCount>(b);
    for (int j = 0; j < kCount; ++j) {
      float u = Load(first.value[j]), v = Load(second.value[j]);
      Rotate<float>(&u, &v, c[i + j], s[i + j] * direction);
      Store(&first.value[j], u);
      Store(&second.value[j], v);
    }
    StorePack(a, first);
    StorePack(b, second);
  }
}

// One block per row; a thread takes four neighbouring columns of the whole matrix, which one random number decides.
template <typename T>
__global__ void DropoutKernel(int64_t width, int64_t first_column, const int64_t* tokens, RandomKey key,
                              uint32_t threshold, float scale, const T* x, T* out) {
  const T* row = x + static_cast<int64_t>(blockIdx.x) * width;
  T* result = out + static_cast<int64_t>(blockIdx.x) * width;
  const auto token = static_cast<uint64_t>(tokens[blockIdx.x]);
  for (int64_t group = first_column / 4 + threadIdx.x; 4 * group < first_column + width; group += blockDim.x) {
    const Random4 random = Philox(key, token, static_cast<uint64_t>(group));
    for (int i = 0; i < 4; ++i) {
      const int64_t column = 4 * group + i - first_column;
      if (column < 0 || column >= width) continue;
      Store(&result[column], random.word[i] >= threshold ? Load(row[column]) * scale : 0.0f);
    }
  }
}

template <typename A, typename B, int kCount>
__global__ void AddKernel(int64_t n, A* a, const B* b) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCount;
  if (i + kCount <= n) {
    Pack<A, kCount> sum = LoadPack<A, kCount>(a + i);
    const Pack<B, kCount> addend = LoadPack<B, kCount>(b + i);
    for (int j = 0; j < kCount; ++j) Store(&sum.value[j], Load(sum.value[j]) + Load(addend.value[j]));
    StorePack(a + i, sum);
  } else {
    for (int64_t k = i; k < n; ++k) Store(&a[k], Load(a[k]) + Load(b[k]));
  }
}

template <typename T, int kCount>
void SwiGluRows(int64_t rows, int64_t width, const void* gate_up, void* out, Stream stream) {
  SwiGluKernel<T, kCount>
      <<<static_cast<unsigned>(rows), ThreadsForRow(width / kCount, kThreads), 0, StreamOf(stream)>>>(
          width, static_cast<const T*>(gate_up), static_cast<T*>(out));
}

template <typename T, int kCount>
void SwiGluRowsBackward(int64_t rows, int64_t width, const void* gate_up, const void* d_out, void* d_gate_up,
                        Stream stream) {
  SwiGluBackwardKernel<T, kCount>
      <<<static_cast<unsigned>(rows), ThreadsForRow(width / kCount, kThreads), 0, StreamOf(stream)>>>(
          width, static_cast<const T*>(gate_up), static_cast<const T*>(d_out), static_cast<T*>(d_gate_up));
}

template <typename T, int kCount>
void RopeRows(int64_t rows, int64_t heads, int64_t head_dim, int64_t half, bool interleaved, int64_t stride, void* x,
              const int64_t* positions, int64_t places, const float* cosine, const float* sine, float direction,
              Stream stream) {
  const int pairs = static_cast<int>(heads * half);
  RopeKernel<T, kCount><<<static_cast<unsigned>(rows), ThreadsForRow(pairs / kCount, kThreads), 0, StreamOf(stream)>>>(
      pairs, static_cast<int>(half), static_cast<int>(head_dim), interleaved, stride, static_cast<T*>(x), positions,
      places, cosine, sine, direction);
}

template <typename T>
void DropoutRows(int64_t rows, int64_t width, int64_t first_column, const int64_t* tokens, RandomKey key,
                 uint32_t threshold, float scale, const void* x, void* out, Stream stream) {
  DropoutKernel<T><<<static_cast<unsigned>(rows), ThreadsForRow(width / 4, kThreads), 0, StreamOf(stream)>>>(
      width, first_column, tokens, key, threshold, scale, static_cast<const T*>(x), static_cast<T*>(out));
}

template <typename A, typename B, int kCount>
void Add(int64_t n, void* a, const void* b, Stream stream) {
  const int64_t per_block = static_cast<int64_t>(kThreads) * kCount;
  AddKernel<A, B, kCount><<<static_cast<unsigned>((n + per_block - 1) / per_block), kThreads, 0, StreamOf(stream)>>>(
      n, static_cast<A*>(a), static_cast<const B*>(b));
}

}  // namespace

void LaunchSwiGlu(Storage storage, int64_t rows, int64_t width, const void* gate_up, void* out, Stream stream) {
  if (rows == 0) return;
  if (storage == Storage::kFloat32) {
    (Aligned(width * 4, gate_up, out) ? &SwiGluRows<float, 4> : &SwiGluRows<float, 1>)(rows, width, gate_up, out,
                                                                                       stream);
  } else {
    (Aligned(width * 2, gate_up, out) ? &SwiGluRows<Bf16, 8> : &SwiGluRows<Bf16, 1>)(rows, width, gate_up, out, stream);
  }
  CheckLaunch("swiglu");
}

void LaunchSwiGluBackward(Storage storage, int64_t rows, int64_t width, const void* gate_up, const void* d_out,
                          void* d_gate_up, Stream stream) {
  if (rows == 0) return;
  if (storage == Storage::kFloat32) {
    const bool aligned = Aligned(width * 4, gate_up, d_out, d_gate_up);
    (aligned ? &SwiGluRowsBackward<float, 4> : &SwiGluRowsBackward<float, 1>)(rows, width, gate_up, d_out, d_gate_up,
                                                                              stream);
  } else {
    const bool aligned = Aligned(width * 2, gate_up, d_out, d_gate_up);
    (aligned ? &SwiGluRowsBackward<Bf16, 8> : &SwiGluRowsBackward<Bf16, 1>)(rows, width, gate_up, d_out, d_gate_up,
                                                                            stream);
  }
  CheckLaunch("swiglu_backward");
}

void LaunchRope(Storage storage, int64_t rows, int64_t heads, int64_t head_dim, int64_t pairs, bool interleaved,
                int64_t stride, void* x, const int64_t* positions, int64_t places, const float* cosine,
                const float* sine, float direction, Stream stream) {
  if (rows == 0 || heads * pairs == 0) return;
  if (storage == Storage::kFloat32) {
    const bool aligned = Aligned(pairs * 4, x) && Aligned(head_dim * 4) && Aligned(stride * 4);
    (aligned ? &RopeRows<float, 4> : &RopeRows<float, 1>)(rows, heads, head_dim, pairs, interleaved, stride, x,
                                                          positions, places, cosine, sine, direction, stream);
  } else {
    const bool aligned = Aligned(pairs * 2, x) && Aligned(head_dim * 2) && Aligned(stride * 2);
    (aligned ? &RopeRows<Bf16, 8> : &RopeRows<Bf16, 1>)(rows, heads, head_dim, pairs, interleaved, stride, x, positions,
                                                        places, cosine, sine, direction, stream);
  }
  CheckLaunch("rope");
}

void LaunchDropout(Storage storage, int64_t rows, int64_t width, int64_t first_column, const int64_t* tokens,
                   RandomKey key, uint32_t threshold, float scale, const void* x, void* out, Stream stream) {
  if (rows == 0 || width == 0) return;
  const auto launch = storage == Storage::kFloat32 ? &DropoutRows<float> : &DropoutRows<Bf16>;
  launch(rows, width, first_column, tokens, key, threshold, scale, x, out, stream);
  CheckLaunch("dropout");
}

void LaunchAdd(Storage a_storage, Storage b_storage, int64_t n, void* a, const void* b, Stream stream) {
  if (n == 0) return;
  const bool aligned = Aligned(0, a, b);
  if (a_storage == Storage::kBfloat16) {
    (aligned ? &Add<Bf16, Bf16, 8> : &Add<Bf16, Bf16, 1>)(n, a, b, stream);
  } else if (b_storage == Storage::kFloat32) {
    (aligned ? &Add<float, float, 4> : &Add<float, float, 1>)(n, a, b, stream);
  } else {
    (aligned ? &Add<float, Bf16, 4> : &Add<float, Bf16, 1>)(n, a, b, stream);
  }
  CheckLaunch("add");
}

}  // namespace trireme::cuda
