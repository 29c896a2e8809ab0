// tests/kernels/cuda_emulation/cuda_bf16.h
// The two conversions that the kernels use. See cuda_runtime.h.
#ifndef TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_BF16_H_
#define TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_BF16_H_

#include "kernels/base/element_math.h"

inline trireme::Bf16 __float2bfloat16_rn(float value) { return trireme::RoundToBf16(value); }
inline uint16_t __bfloat16_as_ushort(trireme::Bf16 value) { return value.bits; }

#endif  // TRIREME_TESTS_KERNELS_CUDA_EMULATION_CUDA_BF16_H_
