#include "kernels/base/upload.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "kernels/base/device.h"

namespace trireme {
namespace {

constexpr int64_t kAlignment = 256;  // bytes; more than any kernel asks for

int64_t RoomFor(const at::Tensor& tensor) {
  return (static_cast<int64_t>(tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

at::Tensor UploadBlock::Add(at::Tensor host) {
  if (device_.is_cpu()) return host;
  at::Tensor place = at::empty({0}, host.options().device(device_));
  parts_.emplace_back(std::move(host), place);
  return place;
}

void UploadBlock::Start() {
  ++Transfers().uploads;
  if (device_.is_cpu()) return;
  int64_t bytes = 0;
  for (const auto& [host, place] : parts_) bytes += RoomFor(host);
  const at::TensorOptions options = at::TensorOptions().dtype(at::kByte);
  at::Tensor pinned = at::empty({bytes}, options.pinned_memory(true));
  at::Tensor block = at::empty({bytes}, options.device(device_));
  auto* const to = static_cast<char*>(pinned.mutable_data_ptr());
  int64_t offset = 0;
  for (auto& [host, place] : parts_) {
    std::memcpy(to + offset, host.const_data_ptr(), host.nbytes());
    // The handles that Add() gave away see the block from here on.
    place.set_(block.storage(), offset / static_cast<int64_t>(host.element_size()), host.sizes(), host.strides());
    offset += RoomFor(host);
  }
  block.copy_(pinned, /*non_blocking=*/true);
  parts_.clear();
}

}  // namespace trireme
