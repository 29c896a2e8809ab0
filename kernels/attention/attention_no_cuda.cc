// The GPU implementation of a build without CUDA: it says so.
#include "kernels/attention/attention.h"

namespace trireme {
namespace {

absl::Status Supports(const AttentionArguments&) {
  return absl::UnimplementedError("this binary was built without CUDA");
}

AttentionOutput Forward(const AttentionArguments&) { TRIREME_CHECK(false, "built without CUDA"); }

void Backward(const AttentionArguments&, const AttentionOutput&, const at::Tensor&, AttentionGradients&) {
  TRIREME_CHECK(false, "built without CUDA");
}

}  // namespace

const AttentionBackend& FlashAttention() {
  static const AttentionBackend backend = {"flash", &Supports, &Forward, &Backward};
  return backend;
}

}  // namespace trireme
