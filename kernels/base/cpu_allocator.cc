#include "kernels/base/cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "launch/base/status.h"

namespace trireme {
namespace {

constexpr size_t kHeader = 64;                     // Holds the block's size; keeps the alignment.
constexpr size_t kMapThreshold = size_t{1} << 20;  // From here on blocks are mapped, in multiples of kMapUnit.
constexpr size_t kMapUnit = size_t{256} << 10;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSpare = size_t{16} << 20;

size_t RoundUp(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

class ReusingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    void* data = size == 0 ? nullptr : Take(size);
    return {data, data, &Delete, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }
  void copy_data(void* destination, const void* source, size_t count) const override {
    default_copy_data(destination, source, count);
  }

  CpuMemory memory() {
    std::lock_guard<std::mutex> lock(mutex_);
    return memory_;
  }
  void ResetPeak() {
    std::lock_guard<std::mutex> lock(mutex_);
    memory_.peak_bytes = memory_.in_use_bytes;
    memory_.peak_total_bytes = memory_.in_use_bytes + memory_.cached_bytes;
  }
  void Release() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [size, block] : free_) Unmap(block, size);
    free_.clear();
    memory_.cached_bytes = 0;
  }

 private:
  static void Delete(void* data);

  void* Take(size_t size) {
    auto wanted = static_cast<size_t>(CpuBlockBytes(static_cast<int64_t>(size)));
    std::lock_guard<std::mutex> lock(mutex_);
    void* block = nullptr;
    auto found = free_.lower_bound(wanted);
    if (found != free_.end() && found->first <= wanted + wanted / 8) {
      wanted = found->first;
      block = found->second;
      free_.erase(found);
      memory_.cached_bytes -= wanted;
    } else {
      MakeRoom(wanted);
      block = Map(wanted);
    }
    *static_cast<size_t*>(block) = wanted;
    memory_.in_use_bytes += wanted;
    memory_.peak_bytes = std::max(memory_.peak_bytes, memory_.in_use_bytes);
    most_in_use_ = std::max(most_in_use_, memory_.in_use_bytes);
    memory_.peak_total_bytes = std::max(memory_.peak_total_bytes, memory_.in_use_bytes + memory_.cached_bytes);
    return static_cast<char*>(block) + kHeader;
  }

  void Give(void* data) {
    void* block = static_cast<char*>(data) - kHeader;
    const size_t size = *static_cast<size_t*>(block);
    std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace(size, block);
    memory_.in_use_bytes -= size;
    memory_.cached_bytes += size;
  }

  // Where sizes are others in every step (the loads of experts), blocks that fit nothing any more would pile up: of
  // those that are free, the largest are given back until a quarter more is held than tensors ever took at once.
  void MakeRoom(size_t wanted) {
    const auto allowed = static_cast<int64_t>(kSpare) + most_in_use_ + most_in_use_ / 4;
    while (!free_.empty() && memory_.in_use_bytes + memory_.cached_bytes + static_cast<int64_t>(wanted) > allowed) {
      const auto largest = std::prev(free_.end());
      memory_.cached_bytes -= static_cast<int64_t>(largest->first);
      Unmap(largest->second, largest->first);
      free_.erase(largest);
    }
  }

  static void* Map(size_t size) {
    if (size < kMapThreshold) {
      void* block = std::aligned_alloc(64, RoundUp(size, 64));
      TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "out of host memory: asked for ", size, " bytes");
      return block;
    }
    void* block = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, block != MAP_FAILED, "out of host memory: asked for ", size, " bytes");
    if (size >= 4 * kHugePage) ::madvise(block, size, MADV_HUGEPAGE);
    return block;
  }
  static void Unmap(void* block, size_t size) {
    if (size < kMapThreshold) {
      std::free(block);
    } else {
      ::munmap(block, size);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  CpuMemory memory_;
  int64_t most_in_use_ = 0;  // since the process began
};

// Lives as long as the process: tensors may be freed after main() ends.
ReusingAllocator& Instance() {
  static ReusingAllocator* instance = new ReusingAllocator;
  return *instance;
}

void ReusingAllocator::Delete(void* data) {
  if (data != nullptr) Instance().Give(data);
}

}  // namespace

void InstallCpuAllocator() { c10::SetCPUAllocator(&Instance(), /*priority=*/100); }
int64_t CpuBlockBytes(int64_t bytes) {
  const size_t wanted = static_cast<size_t>(bytes) + kHeader;
  return static_cast<int64_t>(wanted < kMapThreshold ? RoundUp(wanted, std::max<size_t>(64, wanted / 8 / 64 * 64))
                                                     : RoundUp(wanted, kMapUnit));
}

CpuMemory GetCpuMemory() { return Instance().memory(); }
void ResetCpuMemoryPeak() { Instance().ResetPeak(); }
void ReleaseCachedCpuMemory() { Instance().Release(); }

}  // namespace trireme
