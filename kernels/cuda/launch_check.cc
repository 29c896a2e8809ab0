#include <cuda_runtime_api.h>

#include "kernels/cuda/launchers.h"
#include "launch/base/status.h"

namespace trireme::cuda {

void CheckLaunch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  TRIREME_CHECK(error == cudaSuccess, "CUDA kernel ", kernel, ": ", cudaGetErrorString(error));
}

}  // namespace trireme::cuda
