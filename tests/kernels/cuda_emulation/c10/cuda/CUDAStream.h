// tests/kernels/cuda_emulation/c10/cuda/CUDAStream.h
// Launches are done when they return. See ../../cuda_runtime.h.
#ifndef TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDASTREAM_H_
#define TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDASTREAM_H_

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAStream {
  void* stream() const { return nullptr; }
};
inline CUDAStream getCurrentCUDAStream(DeviceIndex) { return {}; }

}  // namespace c10::cuda

#endif  // TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDASTREAM_H_
