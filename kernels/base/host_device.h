// kernels/base/host_device.h
// Marks the arithmetic that CPU loops and CUDA kernels share.
#ifndef TRIREME_KERNELS_BASE_HOST_DEVICE_H_
#define TRIREME_KERNELS_BASE_HOST_DEVICE_H_

#ifdef __CUDACC__
#define TRIREME_HOST_DEVICE __host__ __device__
#else
#define TRIREME_HOST_DEVICE
#endif

#endif  // TRIREME_KERNELS_BASE_HOST_DEVICE_H_
