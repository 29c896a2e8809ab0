// The flash attention kernels inside libtorch, in their variable-length form (arXiv 2307.08691). Backward is
// deterministic when libtorch's global setting asks for it.
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "kernels/attention/attention.h"

namespace trireme {
namespace {

constexpr int64_t kMaxHeadDim = 256;

// The kernels read 16 bytes at a time.
bool Aligned(const at::Tensor& x) {
  return x.stride(2) == 1 && x.stride(0) % 8 == 0 && x.stride(1) % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

absl::Status FlashSupports(const AttentionArguments& a) {
  if (!a.q.is_cuda()) return absl::UnimplementedError("needs CUDA tensors");
  if (a.q.scalar_type() != at::kBFloat16) {
    return absl::UnimplementedError(absl::StrCat("needs bfloat16 tensors, not ", c10::toString(a.q.scalar_type())));
  }
  if (a.softcap > 0) return absl::UnimplementedError("libtorch's variable-length kernel has no soft cap");
  if (a.slopes.defined())
    return absl::UnimplementedError("libtorch's variable-length kernel has no gradient with ALiBi");
  if (a.diagonal.defined())
    return absl::UnimplementedError("libtorch's variable-length kernel is bottom-right aligned");
  const int64_t head_dim = a.q.size(2), heads = a.q.size(1), kv_heads = a.k.size(1);
  if (head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
    return absl::UnimplementedError(absl::StrCat("head_dim ", head_dim, " is not a multiple of 8 up to ", kMaxHeadDim));
  }
  if (a.v.size(2) > head_dim) return absl::UnimplementedError("values are wider than keys");
  if (heads % kv_heads != 0)
    return absl::UnimplementedError(absl::StrCat(heads, " heads are not a multiple of ", kv_heads, " kv heads"));
  if (!Aligned(a.q) || !Aligned(a.k) || !Aligned(a.v))
    return absl::UnimplementedError("rows of q, k or v do not start at multiples of 16 bytes");
  const cudaDeviceProp* device = at::cuda::getDeviceProperties(a.q.device().index());
  if (device->major < 8) {
    return absl::UnimplementedError(
        absl::StrCat("compute capability ", device->major, ".", device->minor, " is below 8.0"));
  }
  return absl::OkStatus();
}

// Keys to the left of the query's own: ours counts that one too.
std::optional<int64_t> WindowLeft(const AttentionArguments& a) {
  return a.window > 0 ? std::optional<int64_t>(a.window - 1) : std::nullopt;
}
std::optional<int64_t> WindowRight(const AttentionArguments& a) {
  return a.causal ? std::optional<int64_t>(0) : std::nullopt;
}

// At 1 the kernel reshapes queries as one per segment, which segments without tokens (padding of cu_seqlens) break. It
// is only a bound.
int64_t MaxQueries(const AttentionArguments& a) { return std::max<int64_t>(a.max_q, 2); }

// The kernels know one width of heads: narrower values and what comes of them get zeros.
at::Tensor AsWide(const at::Tensor& x, const AttentionArguments& a) {
  const int64_t missing = a.q.size(2) - x.size(2);
  return missing == 0 ? x : at::constant_pad_nd(x, {0, missing});
}

AttentionOutput FlashForward(const AttentionArguments& a) {
  AttentionOutput output;
  std::tie(output.out, output.lse, std::ignore, std::ignore, std::ignore) = at::_flash_attention_forward(
      a.q, a.k, AsWide(a.v, a), a.cu_seqlens_q, a.cu_seqlens_k, MaxQueries(a), a.max_k, /*dropout_p=*/0.0, a.causal,
      /*return_debug_mask=*/false, a.scale, WindowLeft(a), WindowRight(a));
  TRIREME_CHECK(output.lse.dim() == 2 && output.lse.size(0) == a.q.size(1) && output.lse.size(1) == a.q.size(0),
                "flash attention's lse is not [heads, tokens]: another version of libtorch?");
  output.out = output.out.narrow(2, 0, a.v.size(2)).contiguous();
  return output;
}

void FlashBackward(const AttentionArguments& a, const AttentionOutput& output, const at::Tensor& d_out,
                   AttentionGradients& gradients) {
  // State of a random generator that only dropout reads.
  const at::Tensor unused = at::empty({2}, a.q.options().dtype(at::kUInt64));
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      AsWide(d_out, a), a.q, a.k, AsWide(a.v, a), AsWide(output.out, a), output.lse, a.cu_seqlens_q, a.cu_seqlens_k,
      MaxQueries(a), a.max_k,
      /*dropout_p=*/0.0, a.causal, unused, unused, a.scale, WindowLeft(a), WindowRight(a));
  gradients.dq.copy_(dq);
  gradients.dk.copy_(dk);
  gradients.dv.copy_(dv.narrow(2, 0, a.v.size(2)));
}

}  // namespace

const AttentionBackend& FlashAttention() {
  static const AttentionBackend backend = {"flash", &FlashSupports, &FlashForward, &FlashBackward};
  return backend;
}

}  // namespace trireme
