// kernels/base/device.h
// The processor a rank computes on. device_cuda.cc and device_no_cuda.cc are siblings.
#ifndef TRIREME_KERNELS_BASE_DEVICE_H_
#define TRIREME_KERNELS_BASE_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <atomic>
#include <memory>
#include <string>

#include "launch/base/status.h"

namespace trireme {

// GPUs this process can use; 0 in a build without CUDA. An error names a driver that is too old for this binary.
absl::StatusOr<int> CudaDeviceCount();

// This rank's GPU, made current, with libtorch's allocator set up; ranks of a machine beyond its number of GPUs share
// them.
absl::StatusOr<at::Device> UseCudaDevice(int local_rank);

// "NVIDIA H200", or the CPU's model name.
std::string DeviceName(at::Device device);

// A text that is the same in every process that uses the same GPU and differs for every other GPU; empty for a CPU.
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

// How often this process moved something to a device, or waited for something from it. On a CPU what would move there
// is counted, though it stays where it is.
struct TransferCounts {
  std::atomic<int64_t> uploads = 0, host_reads = 0;
};
TransferCounts& Transfers();

// How many steps may be under way before the host looks at the results of the first: a GPU then never waits for it.
int64_t StepsAhead(at::Device device);

// A tensor on its way to the host, behind what the current stream holds; on a CPU the tensor itself.
class HostCopy {
 public:
  explicit HostCopy(const at::Tensor& tensor);
  const at::Tensor& Wait() const;  // The values are there. Counts as a host read.

 private:
  at::Tensor host_;
  std::shared_ptr<void> arrived_;  // a GPU's event
};

// Copies between a GPU and the host that run beside what computes, on a stream of their own.
class TransferQueue {
 public:
  explicit TransferQueue(at::Device device);

  // A copy of `tensor` on `to`, one of the two being the host (pinned memory where the device is a GPU). It begins
  // after what the current stream holds; the caller may drop the original at once. Copies run one after another.
  at::Tensor Copy(const at::Tensor& tensor, at::Device to);

  // Makes the current stream wait for all copies so far: only then may their results be used.
  void Join();

 private:
  at::Device device_;
  std::shared_ptr<void> stream_;
};

// Makes libtorch's kernels on GPUs choose deterministic variants (kernels.deterministic), for the whole process. CPU
// kernels always are.
void UseDeterministicKernels();

// Dense bfloat16 (or float32) matrix-product peak in operations per second. On a CPU measured now (takes 0.15 s);
// on a GPU the published figure of its model, 0 when unknown.
double PeakFlops(at::Device device, at::ScalarType dtype);

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_DEVICE_H_
