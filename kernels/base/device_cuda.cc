#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <absl/strings/escaping.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/device_internal.h"

namespace trireme {
namespace {

void CheckCuda(cudaError_t error, const char* call) {
  TRIREME_CHECK(error == cudaSuccess, call, ": ", cudaGetErrorString(error));
}

// An event at what the current stream of `device` holds now.
std::shared_ptr<void> RecordEvent(cudaStream_t stream) {
  cudaEvent_t event;
  CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  CheckCuda(cudaEventRecord(event, stream), "cudaEventRecord");
  return std::shared_ptr<void>(event, [](void* made) { cudaEventDestroy(static_cast<cudaEvent_t>(made)); });
}

cudaStream_t CurrentStream(at::Device device) { return c10::cuda::getCurrentCUDAStream(device.index()).stream(); }

}  // namespace

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

HostCopy::HostCopy(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) {
    host_ = tensor;
    return;
  }
  host_ = CopyOnCurrentStream(tensor, at::kCPU);
  arrived_ = RecordEvent(CurrentStream(tensor.device()));
}

const at::Tensor& HostCopy::Wait() const {
  ++Transfers().host_reads;
  if (arrived_ != nullptr)
    CheckCuda(cudaEventSynchronize(static_cast<cudaEvent_t>(arrived_.get())), "cudaEventSynchronize");
  return host_;
}

TransferQueue::TransferQueue(at::Device device) : device_(device) {
  if (!device.is_cuda()) return;
  const c10::cuda::CUDAGuard guard(device);
  cudaStream_t stream;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  // libtorch's allocators may still ask for the stream when the process ends: it is left to the driver.
  stream_ = std::shared_ptr<void>(stream, [](void*) {});
}

at::Tensor TransferQueue::Copy(const at::Tensor& tensor, at::Device to) {
  if (!device_.is_cuda()) return CopyOnCurrentStream(tensor, to);
  auto* const stream = static_cast<cudaStream_t>(stream_.get());
  at::TensorOptions options = tensor.options().device(to);
  if (to.is_cpu()) options = options.pinned_memory(true);
  // The memory is the current stream's: the copy must come after its earlier use, and its later use after the copy.
  at::Tensor copy = at::empty(tensor.sizes(), options);
  const std::shared_ptr<void> begin = RecordEvent(CurrentStream(device_));
  CheckCuda(cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(begin.get()), 0), "cudaStreamWaitEvent");
  const c10::cuda::CUDAStream own = c10::cuda::getStreamFromExternal(stream, device_.index());
  const c10::cuda::CUDAStreamGuard on_stream(own);
  const at::NoGradGuard no_grad;
  copy.copy_(tensor, /*non_blocking=*/true);
  const at::Tensor& on_device = to.is_cpu() ? tensor : copy;
  c10::cuda::CUDACachingAllocator::recordStream(on_device.storage().data_ptr(), own);
  return copy;
}

void TransferQueue::Join() {
  if (!device_.is_cuda()) return;
  const std::shared_ptr<void> end = RecordEvent(static_cast<cudaStream_t>(stream_.get()));
  CheckCuda(cudaStreamWaitEvent(CurrentStream(device_), static_cast<cudaEvent_t>(end.get()), 0), "cudaStreamWaitEvent");
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
