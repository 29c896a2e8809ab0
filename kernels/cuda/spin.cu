#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

__device__ inline int64_t GlobalNanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return static_cast<int64_t>(now);
}

__global__ void SpinKernel(int64_t nanoseconds) {
  const int64_t end = GlobalNanoseconds() + nanoseconds;
  while (GlobalNanoseconds() < end) __nanosleep(1000);
}

}  // namespace

void LaunchSpin(int64_t nanoseconds, Stream stream) {
  SpinKernel<<<1, 1, 0, StreamOf(stream)>>>(nanoseconds);
  CheckLaunch("spin");
}

}  // namespace trireme::cuda
