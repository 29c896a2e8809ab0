// The GPU implementation of a build without CUDA: it says so.
#include "kernels/attention/attention.h"

namespace trireme {
namespace {

absl::Status FlashSupports(const AttentionArguments&) {
  return absl::UnimplementedError("this binary was built without CUDA");
}

AttentionOutput FlashForward(const AttentionArguments&) { TRIREME_CHECK(false, "built without CUDA"); }

void FlashBackward(const AttentionArguments&, const AttentionOutput&, const at::Tensor&, AttentionGradients&) {
  TRIREME_CHECK(false, "built without CUDA");
}

}  // namespace

const AttentionBackend& FlashAttention() {
  static const AttentionBackend backend = {"flash", &FlashSupports, &FlashForward, &FlashBackward};
  return backend;
}

}  // namespace trireme
