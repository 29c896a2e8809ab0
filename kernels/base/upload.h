// kernels/base/upload.h
// Host arrays on their way to the device, all of them in one copy.
#ifndef TRIREME_KERNELS_BASE_UPLOAD_H_
#define TRIREME_KERNELS_BASE_UPLOAD_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <memory>
#include <utility>
#include <vector>

namespace trireme {

// On a GPU the arrays are packed into one pinned block, which one asynchronous copy moves into one block on the device;
// on a CPU they stay where they are. Must not be dropped before Start().
class UploadBlock {
 public:
  explicit UploadBlock(at::Device device) : device_(device) {}

  // Takes the values. What it returns has their size and type, and after Start(), in the order of the then current
  // stream, the values.
  template <typename T>
  at::Tensor Add(std::vector<T> values) {
    auto owner = std::make_shared<std::vector<T>>(std::move(values));
    const auto size = static_cast<int64_t>(owner->size());
    return Add(at::from_blob(
        owner->data(), {size}, [owner](void*) {}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value)));
  }

  // Counts as one upload, on a CPU too.
  void Start();

 private:
  at::Tensor Add(at::Tensor host);

  at::Device device_;
  std::vector<std::pair<at::Tensor, at::Tensor>> parts_;  // on the host, and its place
};

// One array by itself.
template <typename T>
at::Tensor Uploaded(std::vector<T> values, at::Device device) {
  UploadBlock block(device);
  at::Tensor tensor = block.Add(std::move(values));
  block.Start();
  return tensor;
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_UPLOAD_H_
