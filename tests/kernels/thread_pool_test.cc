#include "kernels/base/thread_pool.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/base/ops.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

class ThreadPool : public testing::Test {
 protected:
  void TearDown() override { SetCpuThreads(2); }
};

TEST_F(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    SetCpuThreads(threads);
    EXPECT_EQ(CpuThreads(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      ParallelTasks(tasks, [&](int64_t i) { ++runs[i]; });
      for (int64_t i = 0; i < tasks; ++i) ASSERT_EQ(runs[i], 1) << threads << " threads, task " << i << " of " << tasks;
    }
  }
}

TEST_F(ThreadPool, ManyTinyCallsOneAfterAnother) {
  constexpr int kCalls = 300;
  for (const int threads : {2, 3}) {
    SetCpuThreads(threads);
    int64_t total = 0;
    for (int call = 0; call < kCalls; ++call) {
      int64_t parts[3] = {};
      ParallelTasks(3, [&](int64_t i) { parts[i] = i + call; });  // What tasks wrote is seen when the call returns.
      total += parts[0] + parts[1] + parts[2];
    }
    EXPECT_EQ(total, 3 * kCalls + 3 * kCalls * (kCalls - 1) / 2) << threads << " threads";
  }
}

TEST_F(ThreadPool, NestedCallsRunInTheCaller) {
  SetCpuThreads(2);
  std::vector<std::atomic<int>> runs(64);
  ParallelTasks(8, [&](int64_t outer) {
    ParallelTasks(8, [&](int64_t inner) { ParallelTasks(1, [&](int64_t) { ++runs[outer * 8 + inner]; }); });
  });
  for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
}

TEST_F(ThreadPool, RangesCoverWithoutOverlap) {
  SetCpuThreads(2);
  for (const int64_t n : {0, 1, 9, 10, 11, 1003}) {
    std::vector<std::atomic<int>> covered(n);
    ParallelRanges(n, 10, [&](int64_t begin, int64_t end) {
      EXPECT_LE(end - begin, 10);
      EXPECT_EQ(begin % 10, 0);
      for (int64_t i = begin; i < end; ++i) ++covered[i];
    });
    for (const std::atomic<int>& count : covered) EXPECT_EQ(count, 1) << n;
  }
}

TEST_F(ThreadPool, LessThanOneThreadIsOne) {
  SetCpuThreads(0);
  EXPECT_EQ(CpuThreads(), 1);
}

// Work is cut the same way for any number of threads, and sums over parts are added in order.
TEST_F(ThreadPool, KernelsGiveTheSameBitsOnAnyNumberOfThreads) {
  TestTensors random(81);
  const int64_t rows = 700, width = 256;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random.Normal({rows, width}, dtype), delta = random.Normal({rows, width}, dtype);
    const at::Tensor weight = random.Normal({width}, dtype), ids = random.Ids(rows, 50);
    std::vector<at::Tensor> first;
    for (const int threads : {1, 2, 4}) {
      SetCpuThreads(threads);
      const RmsNormResult norm = RmsNorm(x, delta, weight, 1e-5);
      at::Tensor d_weight = at::zeros({width}, at::TensorOptions().dtype(at::kFloat));
      const at::Tensor dx = RmsNormBackward(norm.h, norm.rstd, weight, delta, x, &d_weight);
      at::Tensor table = at::zeros({50, width}, d_weight.options());
      AddEmbeddingGradient(ids, delta, table);
      const std::vector<at::Tensor> all = {
          norm.y, dx, d_weight, GatedForward(x), GatedBackward(x, delta.narrow(1, 0, width / 2).contiguous()), table};
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_TRUE(all[i].equal(first[i])) << threads << " threads, result " << i;
    }
  }
}

TEST_F(ThreadPool, WhatATaskThrowsIsThrownHereOnceNoTaskRuns) {
  for (const int threads : {1, 2, 5}) {
    SetCpuThreads(threads);
    for (const int64_t thrower : {0, 1, 499, 999}) {
      std::atomic<int> inside = 0;
      const auto task = [&](int64_t i) {
        ++inside;
        if (i == thrower) {
          --inside;
          throw std::bad_alloc();
        }
        --inside;
      };
      EXPECT_THROW(ParallelTasks(1000, task), std::bad_alloc) << threads << " threads, task " << thrower;
      EXPECT_EQ(inside, 0);
      // The pool is as before: every task runs, on all threads.
      std::atomic<int64_t> sum = 0;
      ParallelTasks(100, [&](int64_t i) { sum += i; });
      EXPECT_EQ(sum, 99 * 100 / 2);
    }
    EXPECT_THROW(ParallelTasks(1000, [](int64_t i) { throw std::out_of_range(std::to_string(i)); }), std::out_of_range);
    // Of a nested call, through both.
    EXPECT_THROW(ParallelTasks(4, [](int64_t) { ParallelTasks(4, [](int64_t) { throw std::bad_alloc(); }); }),
                 std::bad_alloc);
  }
}

}  // namespace
}  // namespace trireme
