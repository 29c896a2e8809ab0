// kernels/base/device_internal.h
// What device_cuda.cc and device_no_cuda.cc share.
#ifndef TRIREME_KERNELS_BASE_DEVICE_INTERNAL_H_
#define TRIREME_KERNELS_BASE_DEVICE_INTERNAL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace trireme {

std::string CpuName();
int64_t PeakResidentBytes();
int64_t HostMemoryBytes();
at::Tensor CopyOnCurrentStream(const at::Tensor& tensor, at::Device to);  // To the host: into pinned memory.
double MeasuredCpuFlops();                                                // float32 matrix product, all threads

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_DEVICE_INTERNAL_H_
