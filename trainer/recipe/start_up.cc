#include "trainer/recipe/start_up.h"

#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm.h"

namespace trireme {

absl::StatusOr<at::Device> SetUpDevice(const LaunchConfig& config, const Process& process) {
  InstallCpuAllocator();
  SetCpuThreads(process.recommended_threads());
  BlasName();  // Chosen and set up before anything multiplies.
  if (config.device() == LaunchConfig::CPU) return at::Device(at::kCPU);
  ASSIGN_OR_RETURN(const int gpus, CudaDeviceCount());
  if (gpus == 0 && config.device() == LaunchConfig::AUTO) return at::Device(at::kCPU);
  return UseCudaDevice(process.local_rank());
}

}  // namespace trireme
