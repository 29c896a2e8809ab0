// kernels/functions.h
// The differentiable operations of a decoder. Each is one autograd node: it saves activations only, asks its weights
// for their values again in backward, hands weight gradients to Weight::AddGradient and returns none to autograd. What
// is cheap to compute again (norm and SwiGLU outputs) is not saved. `anchor`: an empty tensor that requires grad, so
// that a unit with integer inputs has a graph.
#ifndef TRIREME_KERNELS_FUNCTIONS_H_
#define TRIREME_KERNELS_FUNCTIONS_H_

#include <ATen/core/Tensor.h>

#include <utility>

#include "kernels/attention.h"
#include "kernels/ops.h"
#include "kernels/weight.h"

namespace trireme {

// tokens [T] int64, weight [V, H] -> [T, H].
at::Tensor Embedding(const at::Tensor& tokens, Weight& weight, const at::Tensor& anchor);

// x [T, H] -> RMSNorm(x) [T, H].
at::Tensor Norm(const at::Tensor& x, Weight& norm, double eps);

// h = x + delta (delta may be undefined: h = x), y = RMSNorm(h) linear^T. Returns {h [T, H], y [T, N]}. Saves h and one
// number per row.
std::pair<at::Tensor, at::Tensor> NormLinear(const at::Tensor& x, const at::Tensor& delta, Weight& norm, double eps,
                                             Weight& linear);

// x [T, K] -> x weight^T (+ residual [T, N] where defined).
at::Tensor Linear(const at::Tensor& x, Weight& weight, const at::Tensor& residual = {});

// gate_up [T, 2F] -> SwiGLU(gate_up) weight^T (+ residual where defined). Saves gate_up only.
at::Tensor SwiGluLinear(const at::Tensor& gate_up, Weight& weight, const at::Tensor& residual = {});

struct SelfAttentionArguments {
  int64_t heads, kv_heads, head_dim;
  at::Tensor positions;   // [T] int64
  const RopeTable* rope;  // null: no rotation
  at::Tensor cu_seqlens;  // [segments + 1] int32
  int64_t max_seqlen;
  int64_t window;
  const AttentionBackend* backend;
};
// qkv [T, (heads + 2 kv_heads) head_dim] -> [T, heads * head_dim]. Rotates q and k inside qkv, which the caller must
// not use again.
at::Tensor SelfAttention(const at::Tensor& qkv, const SelfAttentionArguments& arguments);

struct Loss {
  at::Tensor seed;  // scalar with a graph: backward(seed) delivers dx. Its value carries no meaning.
  at::Tensor sums;  // [2] float64: sum of cross-entropy over targets, sum of lse^2
};
// Projection and cross-entropy; with options.with_gradient the weight's gradient is handed over at once, in forward.
Loss CrossEntropyHead(const at::Tensor& x, Weight& weight, const at::Tensor& targets, const LossHeadOptions& options);

}  // namespace trireme

#endif  // TRIREME_KERNELS_FUNCTIONS_H_
