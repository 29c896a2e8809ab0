// planted_faults race | use-after-free | overflow | none: commits that fault. launch/sanitize.sh runs it first, to see
// that what it would find is found.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>

#include "kernels/base/thread_pool.h"

namespace {

// Every task adds to one integer, on the pool that the kernels use.
int Race(bool planted) {
  trireme::SetCpuThreads(4);
  int64_t sum = 0;
  int64_t own[64] = {};
  trireme::ParallelTasks(64, [&](int64_t task) {
    for (int i = 0; i < 10000; ++i) ++(planted ? sum : own[task]);
  });
  for (const int64_t part : own) sum += part;
  std::printf("%lld\n", static_cast<long long>(sum));
  return 0;
}

int UseAfterFree() {
  auto owner = std::make_unique<int[]>(16);
  volatile int* kept = owner.get();
  owner.reset();
  return kept[3];
}

int Overflow(int one) {
  volatile int largest = std::numeric_limits<int>::max();
  return largest + one > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string fault = argc == 2 ? argv[1] : "";
  if (fault == "race" || fault == "none") return Race(fault == "race");
  if (fault == "use-after-free") return UseAfterFree();
  if (fault == "overflow") return Overflow(argc - 1);
  std::fprintf(stderr, "usage: planted_faults race | use-after-free | overflow | none\n");
  return 2;
}
