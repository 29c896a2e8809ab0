// tests/kernels/gpu_test.h
// What the tests of CUDA operations share: a fixture that skips where there is no GPU, and copies to it. In
// a build with emulated CUDA (cuda_emulation/cuda_runtime.h) the host stands in for the GPU.
#ifndef TRIREME_TESTS_KERNELS_GPU_TEST_H_
#define TRIREME_TESTS_KERNELS_GPU_TEST_H_

#include <gtest/gtest.h>

#include <string>

#include "kernels/base/device.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {

#ifdef TRIREME_EMULATED_CUDA
}  // namespace trireme
namespace emulated {
extern int64_t launches;
}
namespace trireme {
inline constexpr bool kEmulated = true;
inline const at::Device kGpu(at::kCPU);
inline int64_t Launches() { return emulated::launches; }  // so far
#else
inline constexpr bool kEmulated = false;
inline const at::Device kGpu(at::kCUDA, 0);
inline int64_t Launches() { return 0; }  // not counted
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

  TestTensors random_{17};
};

// Always a copy.
inline at::Tensor OnGpu(const at::Tensor& x) {
  return x.defined() ? x.to(x.options().device(kGpu), /*non_blocking=*/false, /*copy=*/true) : x;
}

inline double Error(const at::Tensor& gpu, const at::Tensor& cpu) { return RelativeError(gpu.cpu(), cpu); }

}  // namespace trireme

#endif  // TRIREME_TESTS_KERNELS_GPU_TEST_H_
