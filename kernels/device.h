// kernels/device.h
// The processor a rank computes on. device_cuda.cc and device_no_cuda.cc are siblings.
#ifndef TRIREME_KERNELS_DEVICE_H_
#define TRIREME_KERNELS_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "launch/status.h"

namespace trireme {

// GPUs this process can use; 0 in a build without CUDA. An error names a driver that is too old for this binary.
absl::StatusOr<int> CudaDeviceCount();

// This rank's GPU, made current, with libtorch's allocator set up; ranks of a machine beyond its number of GPUs share
// them.
absl::StatusOr<at::Device> UseCudaDevice(int local_rank);

// "NVIDIA H200", or the CPU's model name.
std::string DeviceName(at::Device device);

// The same in every process that uses the same GPU, and on no other; empty for a CPU.
std::string DeviceId(at::Device device);

// Most memory this process ever held: allocated device memory on a GPU, resident memory on a CPU.
int64_t PeakMemoryBytes(at::Device device);

// Most memory that tensors took, with what the allocator kept for more of them, since ResetPeakTensorBytes().
int64_t PeakTensorBytes(at::Device device);
void ResetPeakTensorBytes(at::Device device);

// What there is: of the GPU, or of the whole machine.
int64_t TotalMemoryBytes(at::Device device);

// Waits until everything issued to the device is done.
void Synchronize(at::Device device);

// A copy of `tensor` on `to`, one of the two being the host, in the order of the current stream: the caller may drop
// the original at once. On the host it lies in pinned memory where it comes from a GPU.
at::Tensor CopyBetweenHostAndDevice(const at::Tensor& tensor, at::Device to);

// Makes libtorch's kernels on GPUs choose deterministic variants (kernels.deterministic), for the whole process. CPU
// kernels always are.
void UseDeterministicKernels();

// Dense bfloat16 (or float32) matrix-product peak in operations per second. On a CPU measured now (takes 0.15 s);
// on a GPU the published figure of its model, 0 when unknown.
double PeakFlops(at::Device device, at::ScalarType dtype);

}  // namespace trireme

#endif  // TRIREME_KERNELS_DEVICE_H_
