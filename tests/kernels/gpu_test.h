// tests/kernels/gpu_test.h
// What the tests of CUDA operations share: a fixture that skips where there is no GPU, random tensors, comparisons. In
// a build with emulated CUDA (cuda_emulation/cuda_runtime.h) the host stands in for the GPU.
#ifndef TRIREME_TESTS_KERNELS_GPU_TEST_H_
#define TRIREME_TESTS_KERNELS_GPU_TEST_H_

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "kernels/device.h"
#include "kernels/thread_pool.h"

namespace trireme {

#ifdef TRIREME_EMULATED_CUDA
inline constexpr bool kEmulated = true;
inline const at::Device kGpu(at::kCPU);
#else
inline constexpr bool kEmulated = false;
inline const at::Device kGpu(at::kCUDA, 0);
#endif

// Why there is no GPU to test on; empty when there is one.
inline std::string MissingGpu() {
  if (kEmulated) return "";
  const absl::StatusOr<int> count = CudaDeviceCount();
  if (!count.ok()) return std::string(count.status().message());
  return *count > 0 ? "" : "no GPU on this machine, or a build without CUDA";
}

class GpuTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  static void SetUpTestSuite() {
    SetCpuThreads(2);
    if (kEmulated || !MissingGpu().empty()) return;
    ASSERT_TRUE(UseCudaDevice(0).ok());
  }
  void SetUp() override {
    if (const std::string reason = MissingGpu(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // Normally distributed, rounded to `dtype`, on the CPU.
  at::Tensor Random(at::IntArrayRef sizes, at::ScalarType dtype, double spread = 1) {
    at::Tensor values = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
    std::normal_distribution<float> normal(0, static_cast<float>(spread));
    float* data = values.data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i) data[i] = normal(generator_);
    return values.to(dtype);
  }
  at::Tensor RandomIds(int64_t n, int64_t limit) {
    at::Tensor ids = at::empty({n}, at::TensorOptions().dtype(at::kLong));
    for (int64_t i = 0; i < n; ++i)
      ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(generator_() % static_cast<uint64_t>(limit));
    return ids;
  }

  std::mt19937_64 generator_{17};
};

// Always a copy.
inline at::Tensor OnGpu(const at::Tensor& x) {
  return x.defined() ? x.to(x.options().device(kGpu), /*non_blocking=*/false, /*copy=*/true) : x;
}

// Largest difference relative to the largest magnitude.
inline double Error(const at::Tensor& gpu, const at::Tensor& cpu) {
  const at::Tensor a = gpu.cpu().to(at::kDouble), b = cpu.to(at::kDouble);
  const double largest = b.abs().max().item<double>();
  const double difference = (a - b).abs().max().item<double>();
  return difference / std::max(largest, 1e-30);
}

inline std::string DtypeName(const testing::TestParamInfo<at::ScalarType>& info) {
  return info.param == at::kFloat ? "float32" : "bfloat16";
}

}  // namespace trireme

#endif  // TRIREME_TESTS_KERNELS_GPU_TEST_H_
