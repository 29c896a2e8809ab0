// parallel/layers/functions.h
// The differentiable operations of a decoder. Each is one autograd node: it saves activations only, asks its weights
// for their values again in backward, hands weight gradients to Weight::AddGradient and returns none to autograd. What
// is cheap to compute again (norm and SwiGLU outputs) is not saved. `anchor`: an empty tensor that requires grad, so
// that a unit with integer inputs has a graph.
//
// `tensor`: the ranks that share each matrix product (parallel/layers/token_split.h). Between products a rank holds
// rows t = T/n of the tokens; a column-parallel product gathers them and makes N/n of the columns, a row-parallel one
// takes K/n of them and scatters the sum. What is gathered is not saved: it is gathered again for weight gradients. A
// group of one moves nothing. All ranks of the group call the same operations in the same order.
#ifndef TRIREME_PARALLEL_LAYERS_FUNCTIONS_H_
#define TRIREME_PARALLEL_LAYERS_FUNCTIONS_H_

#include <ATen/core/Tensor.h>

#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/base/ops.h"
#include "kernels/base/weight.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/context_attention.h"
#include "parallel/layers/kept_results.h"
#include "parallel/layers/kv_cache.h"

namespace trireme {

// tokens [T] int64, weight [V/n, H] -> scale * rows [t, H]; the scale is rounded to the weight's dtype first.
at::Tensor Embedding(const at::Tensor& tokens, Weight& weight, ProcessGroup& tensor, const at::Tensor& anchor,
                     double scale = 1);

// x [t, H] -> RMSNorm(x) [t, H]. offset: of the weight (kernels/base/ops.h).
at::Tensor Norm(const at::Tensor& x, Weight& norm, double eps, double offset = 0);

// x [t, H] -> LayerNorm(x) [t, H]. weight null: ones; bias null: none.
at::Tensor LayerNorm(const at::Tensor& x, Weight* weight, Weight* bias, double eps, double offset = 0);

// x [t, H] -> x weight^T + bias [T, N/n]. bias [N/n]: this rank's; null: none. kept, name: where the result may be
// kept.
at::Tensor ColumnLinear(const at::Tensor& x, Weight& weight, Weight* bias, ProcessGroup& tensor, KeptResults* kept,
                        const char* name);

at::Tensor Activate(const at::Tensor& x, Activation activation);

// The learned numbers of an xIELU (arXiv 2411.13010), [1] each.
struct XieluWeights {
  Weight *alpha_p, *alpha_n, *beta, *eps;  // the last two are constants
};
// With p = softplus(alpha_p), n = beta + softplus(alpha_n): p x^2 + beta x above zero, else n (e^min(x, eps) - 1 - x) +
// beta x.
at::Tensor Xielu(const at::Tensor& x, const XieluWeights& weights);

// x [t, H] + the rows of table [positions, H] at positions [T] of all ranks' tokens.
at::Tensor AddPositions(const at::Tensor& x, const at::Tensor& positions, Weight& table, ProcessGroup& tensor);

// How queries and keys are normed. Weights and biases may be null; they are of one head's width, which all heads share,
// or of all heads of this rank.
struct HeadNormArguments {
  int64_t heads = 0, kv_heads = 0;  // this rank's
  bool layer_norm = false;          // instead of RMSNorm
  bool whole_width = false;         // over all heads of all ranks at once, instead of each head
  double eps = 0, offset = 0;
  Weight *q_weight = nullptr, *k_weight = nullptr, *q_bias = nullptr, *k_bias = nullptr;
};
// qkv [T, (heads + 2 kv_heads) head_dim] with q and k normed, a copy. Collective where the whole width is.
at::Tensor HeadNorm(const at::Tensor& qkv, const HeadNormArguments& arguments, ProcessGroup& tensor);

// h = x + delta (delta may be undefined: h = x), y = RMSNorm(h) linear^T + bias. Returns {h [t, H], y [T, N/n]}. Saves
// h and one number per row. kept, name: where y may be kept (null: nowhere). bias [N/n]: this rank's; null: none.
std::pair<at::Tensor, at::Tensor> NormLinear(const at::Tensor& x, const at::Tensor& delta, Weight& norm, double eps,
                                             Weight& linear, ProcessGroup& tensor, KeptResults* kept = nullptr,
                                             const char* name = nullptr, Weight* bias = nullptr, double offset = 0);

// x [T, K/n] -> x weight^T, summed over ranks (+ residual [t, N] where defined, + bias [N]): [t, N].
at::Tensor Linear(const at::Tensor& x, Weight& weight, ProcessGroup& tensor, const at::Tensor& residual = {},
                  Weight* bias = nullptr);

// gate_up [T, 2F/n] -> (activation(gate) up) weight^T, summed over ranks (+ residual where defined) + bias. Saves
// gate_up only; backward writes over it.
at::Tensor GatedLinear(const at::Tensor& gate_up, Activation activation, Weight& weight, ProcessGroup& tensor,
                       const at::Tensor& residual = {}, Weight* bias = nullptr);

struct SelfAttentionArguments {
  int64_t heads, kv_heads, head_dim;  // this rank's
  at::Tensor positions;               // [T] int64
  const RopeTable* rope;              // null: no rotation
  at::Tensor cu_seqlens;              // [segments + 1] int32
  int64_t max_seqlen;
  int64_t window;
  double scale = 0;    // of scores; 0: 1 / sqrt(head_dim)
  double softcap = 0;  // 0: none
  at::Tensor slopes;   // ALiBi: of this rank's heads; undefined: none
  // [heads], of this rank: for each head one more score in the softmax, whose key has no value; null: none. It acts on
  // what attention made, once partial results are merged, so no backend knows it.
  Weight* sinks = nullptr;
  const AttentionBackend* backend;
  const ContextAttention* context = nullptr;  // where sequences are cut over ranks, until backward; null: they are not
  KvCache::Layer* cache = nullptr;            // where earlier tokens are; no gradient. Null: the batch is all there is
  KeptResults* kept = nullptr;
  bool rotated = false;  // qkv is from an earlier pass that rotated it
};
// qkv [T, (heads + 2 kv_heads) head_dim] -> [T, heads * head_dim]. Rotates q and k inside qkv, which the caller must
// not use again. Collective over the context's group.
at::Tensor SelfAttention(const at::Tensor& qkv, const SelfAttentionArguments& arguments);

// Latent attention (arXiv 2405.04434): what a head is made of.
struct LatentHeads {
  int64_t still = 0, turning = 0;  // dimensions of a query and a key that do not rotate, and those behind them
  int64_t value = 0;
};
// q [T, heads (still + turning)], kv [T, heads (still + value)]: each head's key without its turning part, then its
// value; shared [T, turning]: that part, the same for all heads -> [T, heads * value]. Rotates inside q, which the
// caller must not use again. Of the arguments' sizes `heads` counts; there are as many of keys. Collective over the
// context's group.
at::Tensor LatentAttention(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& shared, const LatentHeads& head,
                           const SelfAttentionArguments& arguments);

// x [t, width] of every rank -> [T, width].
at::Tensor AllRows(const at::Tensor& x, ProcessGroup& tensor);

// qkv with q and k rotated, a copy, where something stands between rotation and attention. Of the arguments: sizes,
// positions and rope (null: qkv itself).
at::Tensor Rotate(const at::Tensor& qkv, const SelfAttentionArguments& arguments);

// x [t, H] -> logits [n, vocab_size] float32 of the rows wanted [n] of all tokens; the same bits on all tensor ranks.
// bias [V/n] may be null. No gradient.
at::Tensor Logits(const at::Tensor& x, Weight& weight, Weight* bias, int64_t vocab_size, const at::Tensor& wanted,
                  ProcessGroup& tensor);

struct HeadLoss {
  at::Tensor seed;  // scalar with a graph: backward(seed) delivers dx. Its value carries no meaning.
  at::Tensor sums;  // [2] float64: sum of cross-entropy over targets, sum of lse^2; the same on all tensor ranks
};
// Projection and cross-entropy of x [t, H] with targets [T] under a vocabulary of vocab_size cut over ranks; the logits
// are never gathered: two numbers per token are. With options.with_gradient the weight's gradient is handed over at
// once, in forward, or its LoRA adapter's; and that of the bias [V/n], which may be null. Of `options`: scale, z_loss,
// softcap, chunk_tokens, with_gradient. Only the tokens [n] `with_target` are looked at; undefined: all.
HeadLoss CrossEntropyHead(const at::Tensor& x, Weight& weight, Weight* bias, int64_t vocab_size,
                          const at::Tensor& targets, const at::Tensor& with_target, ProcessGroup& tensor,
                          const LossHeadOptions& options);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_FUNCTIONS_H_
