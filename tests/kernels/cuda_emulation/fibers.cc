// A block's threads as fibers: entered with makecontext, switched with _setjmp and _longjmp, which make no system
// calls.
#undef _FORTIFY_SOURCE  // Its longjmp refuses to leave a stack.
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/launchers.h"
#include "tests/kernels/cuda_emulation/cuda_runtime.h"

namespace emulated {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kWarp = 32, kMaxThreads = 1024;

enum class State { kReady, kAtShuffle, kAtBarrier, kEnded };

struct Fiber {
  State state = State::kReady;
  bool started = false;
  jmp_buf where;
  // What it brings to its shuffles, by turns: a thread that is one shuffle ahead must not overwrite what others still
  // read.
  uint64_t brought[2] = {0, 0};
  int turn = 0;
  std::vector<char> stack;
};

struct Block {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  std::vector<double> dynamic_shared;  // aligned for every kernel's use
  unsigned threads = 0, current = 0;
  jmp_buf scheduler;
  ucontext_t entered_from;
  const std::function<void()>* body = nullptr;
  bool descending = false;
};
Block block;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s (block %u, %u, thread %u)\n", what, block_index.x, block_index.y,
               block.current);
  std::abort();
}

void Enter() {
  (*block.body)();
  block.fibers[block.current].state = State::kEnded;
  _longjmp(block.scheduler, 1);
}

void Wait(State state) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  if (_setjmp(fiber.where) == 0) _longjmp(block.scheduler, 1);
}

// Runs a thread until it waits or ends.
void Continue(unsigned thread) {
  Fiber& fiber = block.fibers[thread];
  block.current = thread;
  thread_index =
      dim3(thread % block_size.x, thread / block_size.x % block_size.y, thread / block_size.x / block_size.y);
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  fiber.stack.resize(kStackBytes);
  context.uc_stack.ss_sp = fiber.stack.data();
  context.uc_stack.ss_size = fiber.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, &Enter, 0);
  swapcontext(&block.entered_from, &context);
}

// Runs a warp until all its threads wait for the block or have ended.
void RunWarp(unsigned first, unsigned last) {
  while (true) {
    for (unsigned i = 0; i < last - first; ++i) {
      const unsigned thread = block.descending ? last - 1 - i : first + i;
      if (block.fibers[thread].state == State::kReady) Continue(thread);
    }
    unsigned at_shuffle = 0;
    for (unsigned i = first; i < last; ++i) at_shuffle += block.fibers[i].state == State::kAtShuffle;
    if (at_shuffle == 0) return;
    if (at_shuffle != kWarp)
      Fail("a warp shuffles while some of its threads wait elsewhere, have ended or do not exist");
    for (unsigned i = first; i < last; ++i) block.fibers[i].state = State::kReady;
  }
}

void RunBlock() {
  for (unsigned i = 0; i < block.threads; ++i) {
    block.fibers[i].state = State::kReady;
    block.fibers[i].started = false;
  }
  // What a kernel does not write itself is not a number.
  std::memset(block.dynamic_shared.data(), 0xFF, block.dynamic_shared.size() * sizeof(double));
  const unsigned warps = (block.threads + kWarp - 1) / kWarp;
  for (bool more = true; more;) {
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = kWarp * (block.descending ? warps - 1 - i : i);
      RunWarp(first, first + kWarp < block.threads ? first + kWarp : block.threads);
    }
    more = false;
    for (unsigned i = 0; i < block.threads; ++i) {
      if (block.fibers[i].state != State::kAtBarrier) continue;
      block.fibers[i].state = State::kReady;
      more = true;
    }
  }
}

}  // namespace

void* DynamicSharedBytes() { return block.dynamic_shared.data(); }

void WaitForBlock() { Wait(State::kAtBarrier); }

void Exchange(const void* own, void* others, size_t size, int lane_mask) {
  const unsigned thread = block.current;
  Fiber& fiber = block.fibers[thread];
  const int turn = fiber.turn;
  fiber.turn = 1 - turn;
  std::memcpy(&fiber.brought[turn], own, size);
  Wait(State::kAtShuffle);
  std::memcpy(others, &block.fibers[thread ^ static_cast<unsigned>(lane_mask)].brought[turn], size);
}

int64_t launches = 0;

void Run(dim3 grid, dim3 size, size_t dynamic_shared_bytes, const std::function<void()>& thread) {
  ++launches;
  grid_size = grid;
  block_size = size;
  block.threads = size.x * size.y * size.z;
  if (block.threads == 0 || block.threads > kMaxThreads) Fail("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.x > 0x7FFFFFFF || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    Fail("a grid has 1 to 2^31 - 1 by 65535 by 65535 blocks");
  if (dynamic_shared_bytes > 48 << 10) Fail("a kernel has 48 KiB of shared memory unless it asks for more");
  block.dynamic_shared.assign((dynamic_shared_bytes + sizeof(double) - 1) / sizeof(double) + 2, 0);
  block.body = &thread;
  block.descending = !block.descending;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        RunBlock();
      }
    }
  }
}

}  // namespace emulated

void __trap() {
  std::fprintf(stderr, "emulated GPU: trap\n");
  std::abort();
}

namespace trireme::cuda {

void CheckLaunch(const char*) {}

}  // namespace trireme::cuda
