#include <ATen/Context.h>
#include <absl/strings/escaping.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/device_internal.h"

namespace trireme {

absl::StatusOr<int> CudaDeviceCount() {
  // Read when the driver starts: each communicator has a stream, and streams that share a queue wait for each other.
  ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // Clears it.
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return 0;  // No driver at all: a machine without GPUs.
    return Error(ExitCode::kConfig, "GPU driver: it supports CUDA ", driver / 1000, ".", driver % 1000 / 10,
                 ", this binary needs ", runtime / 1000, ".", runtime % 1000 / 10,
                 "; update the driver or set launch.device: CPU");
  }
  if (error == cudaErrorNoDevice) return 0;
  return Error(ExitCode::kConfig, "GPU: ", cudaGetErrorString(error), "; check the driver or set launch.device: CPU");
}

absl::StatusOr<at::Device> UseCudaDevice(int local_rank) {
  ASSIGN_OR_RETURN(const int count, CudaDeviceCount());
  if (count == 0)
    return Error(
        ExitCode::kConfig,
        "launch.device: CUDA, but no GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device: CPU");
  const auto index = static_cast<at::DeviceIndex>(local_rank % count);
  c10::cuda::set_device(index);
  c10::cuda::CUDACachingAllocator::init(count);
  // Sums of products stay in float32 until they are rounded once.
  at::globalContext().setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  return at::Device(at::kCUDA, index);
}

std::string DeviceName(at::Device device) {
  if (!device.is_cuda()) return CpuName();
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device.index()) != cudaSuccess) return "GPU";
  return properties.name;
}

std::string DeviceId(at::Device device) {
  cudaDeviceProp properties;
  if (!device.is_cuda() || cudaGetDeviceProperties(&properties, device.index()) != cudaSuccess) return "";
  return absl::BytesToHexString(absl::string_view(properties.uuid.bytes, sizeof(properties.uuid.bytes)));
}

int64_t PeakMemoryBytes(at::Device device) {
  if (!device.is_cuda()) return PeakResidentBytes();
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

int64_t PeakTensorBytes(at::Device device) {
  if (!device.is_cuda()) return GetCpuMemory().peak_total_bytes;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  return stats.reserved_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

void ResetPeakTensorBytes(at::Device device) {
  if (!device.is_cuda()) return ResetCpuMemoryPeak();
  c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
}

int64_t TotalMemoryBytes(at::Device device) {
  if (!device.is_cuda()) return HostMemoryBytes();
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return static_cast<int64_t>(total);
}

void Synchronize(at::Device device) {
  if (device.is_cuda()) c10::cuda::device_synchronize();
}

void UseDeterministicKernels() {
  at::globalContext().setDeterministicAlgorithms(/*b=*/true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);  // All that is read was written.
}

double PeakFlops(at::Device device, at::ScalarType dtype) {
  if (!device.is_cuda()) return MeasuredCpuFlops();
  if (dtype != at::kBFloat16) return 0;
  // Dense bfloat16 figures from NVIDIA's data sheets.
  static constexpr std::pair<const char*, double> kPublished[] = {
      {"H200", 989e12}, {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},    {"GH200", 989e12},
      {"A100", 312e12}, {"B200", 2250e12},     {"L40S", 362e12},     {"RTX 4090", 165e12}};
  const std::string name = DeviceName(device);
  for (const auto& [model, flops] : kPublished) {
    if (name.find(model) != std::string::npos) return flops;
  }
  return 0;
}

}  // namespace trireme
