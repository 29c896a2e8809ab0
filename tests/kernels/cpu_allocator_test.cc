// The allocator is installed for the process: this binary holds nothing else.
#include "kernels/base/cpu_allocator.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

at::Tensor Bytes(int64_t n) { return at::empty({n}, at::TensorOptions().dtype(at::kByte)); }

class CpuAllocator : public testing::Test {
 protected:
  static void SetUpTestSuite() { InstallCpuAllocator(); }
  void SetUp() override { ReleaseCachedCpuMemory(); }
};

TEST_F(CpuAllocator, BlocksAreAlignedAndWritable) {
  for (const int64_t n : {1, 63, 64, 65, 4096, 100'000, 1'048'576, 5'000'001, 20'000'000}) {
    at::Tensor tensor = Bytes(n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64, 0u) << n;
    tensor.fill_(171);
    EXPECT_EQ(tensor[n - 1].item<int>(), 171);
  }
}

TEST_F(CpuAllocator, EmptyTensorsTakeNothing) {
  const int64_t before = GetCpuMemory().in_use_bytes;
  const at::Tensor tensor = Bytes(0);
  EXPECT_EQ(GetCpuMemory().in_use_bytes, before);
}

TEST_F(CpuAllocator, AFreedBlockServesTheSameSizeAgain) {
  for (const int64_t n : {1000, 3'000'000}) {
    ReleaseCachedCpuMemory();
    at::Tensor tensor = Bytes(n);
    const void* address = tensor.data_ptr();
    tensor.reset();
    EXPECT_GE(GetCpuMemory().cached_bytes, n);
    tensor = Bytes(n);
    EXPECT_EQ(tensor.data_ptr(), address) << n;
    EXPECT_EQ(GetCpuMemory().cached_bytes, 0);
  }
}

TEST_F(CpuAllocator, ALittleLessIsServedButNotMuchLess) {
  at::Tensor large = Bytes(8 << 20);
  const void* address = large.data_ptr();
  large.reset();
  at::Tensor half = Bytes(4 << 20);
  EXPECT_NE(half.data_ptr(), address);
  at::Tensor nearly = Bytes((8 << 20) - (500 << 10));
  EXPECT_EQ(nearly.data_ptr(), address);
}

TEST_F(CpuAllocator, CountsUseAndPeak) {
  const int64_t start = GetCpuMemory().in_use_bytes;
  ResetCpuMemoryPeak();
  EXPECT_EQ(GetCpuMemory().peak_bytes, start);
  const int64_t size = 10 << 20;
  at::Tensor a = Bytes(size), b = Bytes(size);
  EXPECT_GE(GetCpuMemory().in_use_bytes, start + 2 * size);
  EXPECT_LE(GetCpuMemory().in_use_bytes, start + 2 * size + 2 * size / 8);
  const int64_t both = GetCpuMemory().in_use_bytes;
  b.reset();
  at::Tensor c = Bytes(1000);
  EXPECT_EQ(GetCpuMemory().peak_bytes, both);
  EXPECT_LT(GetCpuMemory().in_use_bytes, both);
  a.reset();
  c.reset();
  EXPECT_EQ(GetCpuMemory().in_use_bytes, start);
  ResetCpuMemoryPeak();
  EXPECT_EQ(GetCpuMemory().peak_bytes, start);
  EXPECT_GT(GetCpuMemory().cached_bytes, 0);
  ReleaseCachedCpuMemory();
  EXPECT_EQ(GetCpuMemory().cached_bytes, 0);
}

TEST_F(CpuAllocator, ThreadsShareIt) {
  const int64_t start = GetCpuMemory().in_use_bytes;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 2000; ++i) {
        const int64_t n = 1 + (i * 37 + t * 1009) % 5000;
        at::Tensor tensor = Bytes(n);
        tensor.fill_(t);
        ASSERT_TRUE(tensor.eq(t).all().item<bool>());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(GetCpuMemory().in_use_bytes, start);
}

}  // namespace
}  // namespace trireme
