// kernels/attention/attention.h
// Packed variable-length attention behind one record per implementation. The mask (causal, segments, window) is part of
// the operation, so it cannot be forgotten.
#ifndef TRIREME_KERNELS_ATTENTION_ATTENTION_H_
#define TRIREME_KERNELS_ATTENTION_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// q [tokens_q, heads, head_dim], k [tokens_k, kv_heads, head_dim], v [tokens_k, kv_heads, value_dim]; the last
// dimension contiguous, others may be strided (views of one packed projection). Query head h reads kv head h / (heads /
// kv_heads): keys are never repeated. Segment s attends queries [cu_seqlens_q[s], cu_seqlens_q[s+1]) to keys
// [cu_seqlens_k[s], cu_seqlens_k[s+1]). A query that sees no key gives out 0 and lse -inf (libtorch's GPU kernels:
// +inf), and passes no gradient.
struct AttentionArguments {
  at::Tensor q, k, v;
  at::Tensor cu_seqlens_q, cu_seqlens_k;  // [segments + 1] int32, on the tensors' device
  int64_t max_q = 0, max_k = 0;           // longest segments
  // [segments] int32: under the causal mask query i of a segment sees keys up to i + diagonal, that one included, and a
  // window counts back from there; it may lie beyond the keys or below zero. Undefined: bottom-right, keys - queries.
  at::Tensor diagonal;
  bool causal = true;
  int64_t window = 0;  // keys a query sees, itself included; 0: all
  double scale = 0;    // multiplies q k^T
  double softcap = 0;  // 0: none
  // ALiBi (arXiv 2108.12409): [heads] float32; score of query i with key j gets slope x (j - i - diagonal) added, after
  // scale. Undefined: nothing. Not beside a soft cap.
  at::Tensor slopes;
};

struct AttentionOutput {
  at::Tensor out;  // [tokens_q, heads, value_dim], contiguous
  at::Tensor lse;  // [heads, tokens_q] float32 (float64 for float64 inputs), natural logarithm
};

// Gradients go into views given by the caller (parts of one packed gradient), each shaped as its forward tensor, in its
// dtype or the arithmetic type; overwritten. Where `output` is that of a softmax over more keys than the call has, they
// are this part's share of the whole's gradients.
struct AttentionGradients {
  at::Tensor dq, dk, dv;
};

struct AttentionBackend {
  std::string name;
  // OK, or why this implementation cannot do `arguments`.
  absl::Status (*supports)(const AttentionArguments& arguments);
  AttentionOutput (*forward)(const AttentionArguments& arguments);
  void (*backward)(const AttentionArguments& arguments, const AttentionOutput& output, const at::Tensor& d_out,
                   AttentionGradients& gradients);
};

// Plain libtorch operations, any device and dtype; the reference the others are tested against.
const AttentionBackend& MathAttention();
// Own blocked implementation for CPUs.
const AttentionBackend& CpuAttention();
// libtorch's variable-length kernels on NVIDIA GPUs; its supports() says so where the build has no CUDA.
const AttentionBackend& FlashAttention();

// The built-in ones in the order "auto" tries them.
std::vector<AttentionBackend> BuiltInAttentionBackends();

// OK, or why the backend cannot do one of the examples.
absl::Status SupportsAll(const AttentionBackend& backend, const std::vector<AttentionArguments>& examples);

// The backend called `name`, or for "auto" the first that supports all examples. Errors name the reason of each
// candidate.
absl::StatusOr<AttentionBackend> ChooseAttention(const std::vector<AttentionBackend>& backends, const std::string& name,
                                                 const std::vector<AttentionArguments>& examples);

}  // namespace trireme

#endif  // TRIREME_KERNELS_ATTENTION_ATTENTION_H_
