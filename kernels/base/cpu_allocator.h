// kernels/base/cpu_allocator.h
// libtorch's CPU memory, reused: a training step asks for the same sizes again and again, and giving pages back to the
// kernel and faulting them in again costs 10 to 25 % of a step.
#ifndef TRIREME_KERNELS_BASE_CPU_ALLOCATOR_H_
#define TRIREME_KERNELS_BASE_CPU_ALLOCATOR_H_

#include <cstdint>

namespace trireme {

// Makes every later CPU tensor come from the reusing allocator. Called once, before the first tensor. Blocks are
// 64-byte aligned; a freed block serves later requests of its size or up to an eighth less. What is free and fits
// nothing is given back beyond a quarter of what tensors ever took at once. Thread-safe.
void InstallCpuAllocator();

struct CpuMemory {
  int64_t in_use_bytes = 0;      // held by tensors
  int64_t peak_bytes = 0;        // most ever held by tensors since ResetPeak
  int64_t cached_bytes = 0;      // free, kept for reuse
  int64_t peak_total_bytes = 0;  // most ever held by both since ResetPeak
};
CpuMemory GetCpuMemory();
void ResetCpuMemoryPeak();

// What a block for a tensor of `bytes` takes, if it is a new one.
int64_t CpuBlockBytes(int64_t bytes);

// Gives all cached blocks back to the system, as after initialization.
void ReleaseCachedCpuMemory();

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_CPU_ALLOCATOR_H_
