#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/device_internal.h"

namespace trireme {

absl::StatusOr<int> CudaDeviceCount() { return 0; }

absl::StatusOr<at::Device> UseCudaDevice(int) {
  return Error(ExitCode::kConfig,
               "launch.device: CUDA, but this binary was built without CUDA; build it with -DTRIREME_CUDA=ON or use "
               "device: CPU");
}

std::string DeviceName(at::Device) { return CpuName(); }
std::string DeviceId(at::Device) { return ""; }
int64_t PeakMemoryBytes(at::Device) { return PeakResidentBytes(); }
int64_t PeakTensorBytes(at::Device) { return GetCpuMemory().peak_total_bytes; }
void ResetPeakTensorBytes(at::Device) { ResetCpuMemoryPeak(); }
int64_t TotalMemoryBytes(at::Device) { return HostMemoryBytes(); }
void Synchronize(at::Device) {}

HostCopy::HostCopy(const at::Tensor& tensor) : host_(tensor) {}
const at::Tensor& HostCopy::Wait() const {
  ++Transfers().host_reads;
  return host_;
}

TransferQueue::TransferQueue(at::Device device) : device_(device) {}
at::Tensor TransferQueue::Copy(const at::Tensor& tensor, at::Device to) { return CopyOnCurrentStream(tensor, to); }
void TransferQueue::Join() {}

void UseDeterministicKernels() {}
double PeakFlops(at::Device, at::ScalarType) { return MeasuredCpuFlops(); }

}  // namespace trireme
