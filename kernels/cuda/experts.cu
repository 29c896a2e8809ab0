#include "kernels/base/gates.h"
#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;

// One block per row.
template <typename T, typename Gate>
__global__ void ExpertGateKernel(Gate rule, int64_t width, const T* gate_up, const float* weights, T* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x);
  const T* gate = gate_up + row * 2 * width;
  const T* up = gate + Gate::Up(width);
  const float weight = weights[row];
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
    Store(&out[row * width + i], rule.Forward(Load(gate[i * Gate::kStep]), Load(up[i * Gate::kStep])) * weight);
}

template <typename T, typename Gate>
__global__ void ExpertGateBackwardKernel(Gate rule, int64_t width, const T* gate_up, const float* weights,
                                         const T* d_out, T* d_gate_up, float* d_weights, T* out) {
  __shared__ float shared[33];
  const int64_t row = static_cast<int64_t>(blockIdx.x);
  const T* gate = gate_up + row * 2 * width;
  const T* up = gate + Gate::Up(width);
  T* d_gate = d_gate_up + row * 2 * width;
  T* d_up = d_gate + Gate::Up(width);
  const float weight = weights[row];
  float dot = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const float g = Load(gate[i * Gate::kStep]), u = Load(up[i * Gate::kStep]), d = Load(d_out[row * width + i]);
    const float made = rule.Forward(g, u);
    dot += d * made;
    Store(&out[row * width + i], made * weight);
    float dg, du;
    rule.Backward(g, u, d * weight, &dg, &du);
    Store(&d_gate[i * Gate::kStep], dg);
    Store(&d_up[i * Gate::kStep], du);
  }
  dot = BlockSum(dot, shared);
  if (threadIdx.x == 0) d_weights[row] = dot;
}

// One block per token; a thread adds up its columns, choice after choice.
template <typename T>
__global__ void SumOfChoicesKernel(int64_t per_token, int64_t width, const int64_t* places, const T* x, T* out) {
  const int64_t token = static_cast<int64_t>(blockIdx.x);
  const int64_t* place = places + token * per_token;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
    for (int64_t j = 0; j < per_token; ++j) sum += Load(x[place[j] * width + i]);
    Store(&out[token * width + i], sum);
  }
}

template <typename T, typename Gate>
void Forward(const Gate& gate, int64_t rows, int64_t width, const void* gate_up, const float* weights, void* out,
             Stream stream) {
  ExpertGateKernel<T, Gate><<<static_cast<unsigned>(rows), ThreadsForRow(width, kThreads), 0, StreamOf(stream)>>>(
      gate, width, static_cast<const T*>(gate_up), weights, static_cast<T*>(out));
}

template <typename T, typename Gate>
void Backward(const Gate& gate, int64_t rows, int64_t width, const void* gate_up, const float* weights,
              const void* d_out, void* d_gate_up, float* d_weights, void* out, Stream stream) {
  ExpertGateBackwardKernel<T, Gate>
      <<<static_cast<unsigned>(rows), ThreadsForRow(width, kThreads), 0, StreamOf(stream)>>>(
          gate, width, static_cast<const T*>(gate_up), weights, static_cast<const T*>(d_out),
          static_cast<T*>(d_gate_up), d_weights, static_cast<T*>(out));
}

// body(T{}, gate) with the types that storage and kind name.
template <typename Body>
void InTypes(Storage storage, GateKind kind, const ClampedGate& clamped, const Body& body) {
  const auto with = [&](auto type) {
    switch (kind) {
      case GateKind::kSwiGlu:
        return body(type, GateFirst<Silu, float>(clamped));
      case GateKind::kGeGlu:
        return body(type, GateFirst<GeluTanh, float>(clamped));
      case GateKind::kClamped:
        return body(type, ClampedPairs<float>(clamped));
    }
  };
  if (storage == Storage::kFloat32) {
    with(float{});
  } else {
    with(Bf16{});
  }
}

}  // namespace

void LaunchExpertGate(Storage storage, GateKind kind, const ClampedGate& clamped, int64_t rows, int64_t width,
                      const void* gate_up, const float* weights, void* out, Stream stream) {
  if (rows == 0 || width == 0) return;
  InTypes(storage, kind, clamped,
          [&](auto type, auto gate) { Forward<decltype(type)>(gate, rows, width, gate_up, weights, out, stream); });
  CheckLaunch("expert_gate");
}

void LaunchExpertGateBackward(Storage storage, GateKind kind, const ClampedGate& clamped, int64_t rows, int64_t width,
                              const void* gate_up, const float* weights, const void* d_out, void* d_gate_up,
                              float* d_weights, void* out, Stream stream) {
  if (rows == 0 || width == 0) return;
  InTypes(storage, kind, clamped, [&](auto type, auto gate) {
    Backward<decltype(type)>(gate, rows, width, gate_up, weights, d_out, d_gate_up, d_weights, out, stream);
  });
  CheckLaunch("expert_gate_backward");
}

void LaunchSumOfChoices(Storage storage, int64_t tokens, int64_t per_token, int64_t width, const int64_t* places,
                        const void* x, void* out, Stream stream) {
  if (tokens == 0 || width == 0) return;
  const auto threads = ThreadsForRow(width, kThreads);
  if (storage == Storage::kFloat32) {
    SumOfChoicesKernel<float><<<static_cast<unsigned>(tokens), threads, 0, StreamOf(stream)>>>(
        per_token, width, places, static_cast<const float*>(x), static_cast<float*>(out));
  } else {
    SumOfChoicesKernel<Bf16><<<static_cast<unsigned>(tokens), threads, 0, StreamOf(stream)>>>(
        per_token, width, places, static_cast<const Bf16*>(x), static_cast<Bf16*>(out));
  }
  CheckLaunch("sum_of_choices");
}

}  // namespace trireme::cuda
