// tests/kernels/cuda_emulation/c10/cuda/CUDAGuard.h
// The host is the only device. See ../../cuda_runtime.h.
#ifndef TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDAGUARD_H_
#define TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDAGUARD_H_

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};

}  // namespace c10::cuda

#endif  // TRIREME_TESTS_KERNELS_CUDA_EMULATION_C10_CUDA_CUDAGUARD_H_
