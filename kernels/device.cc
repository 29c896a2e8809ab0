#include "kernels/device.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "kernels/device_internal.h"
#include "kernels/ops.h"
#include "launch/log.h"

namespace trireme {

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "CPU";
}

int64_t HostMemoryBytes() {
  return static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(::sysconf(_SC_PAGESIZE));
}

int64_t PeakResidentBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

at::Tensor CopyBetweenHostAndDevice(const at::Tensor& tensor, at::Device to) {
  at::TensorOptions options = tensor.options().device(to);
  if (to.is_cpu() && tensor.is_cuda()) options = options.pinned_memory(true);
  at::Tensor copy = at::empty(tensor.sizes(), options);
  at::NoGradGuard no_grad;
  copy.copy_(tensor, /*non_blocking=*/true);
  return copy;
}

double MeasuredCpuFlops() {
  constexpr int64_t kSize = 1024;
  const at::Tensor a = at::ones({kSize, kSize}, at::TensorOptions().dtype(at::kFloat));
  double best = 0;
  const double end = MonotonicSeconds() + 0.15;
  while (MonotonicSeconds() < end) {
    const double start = MonotonicSeconds();
    MatmulTransposed(a, a);
    best = std::max(best, 2.0 * kSize * kSize * kSize / (MonotonicSeconds() - start));
  }
  return best;
}

}  // namespace trireme
