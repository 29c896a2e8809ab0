#include "kernels/device.h"
#include "kernels/device_internal.h"

namespace trireme {

absl::StatusOr<int> CudaDeviceCount() { return 0; }

absl::StatusOr<at::Device> UseCudaDevice(int) {
  return Error(ExitCode::kConfig,
               "launch.device: CUDA, but this binary was built without CUDA; build it with -DTRIREME_CUDA=ON or use "
               "device: CPU");
}

std::string DeviceName(at::Device) { return CpuName(); }
int64_t PeakMemoryBytes(at::Device) { return PeakResidentBytes(); }
void Synchronize(at::Device) {}
void UseDeterministicKernels() {}
double PeakFlops(at::Device, at::ScalarType) { return MeasuredCpuFlops(); }

}  // namespace trireme
