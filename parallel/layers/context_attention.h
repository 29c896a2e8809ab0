// parallel/layers/context_attention.h
// Attention over sequences cut between the ranks of a group: each holds some tokens' queries, keys and values, and gets
// their outputs and gradients as if it held the whole stream.
#ifndef TRIREME_PARALLEL_LAYERS_CONTEXT_ATTENTION_H_
#define TRIREME_PARALLEL_LAYERS_CONTEXT_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/upload.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/context_split.h"

namespace trireme {

// Some rows of tensors: all, a range (seen in place), or any (copied).
class RowSelection {
 public:
  // index: empty for all. Usable once `upload` was started.
  RowSelection(const std::vector<int64_t>& index, UploadBlock& upload);
  at::Tensor Of(const at::Tensor& whole, int64_t dim = 0) const;
  void Write(const at::Tensor& rows, at::Tensor whole, int64_t dim = 0) const;  // Rows that stand in it once.
  void AddTo(const at::Tensor& rows, at::Tensor whole) const;

 private:
  int64_t begin_ = 0, size_ = 0;  // size 0: all
  at::Tensor index_;              // defined: any
};

// An AttentionCall with its indices on the device.
struct DeviceAttentionCall {
  RowSelection queries, keys;
  at::Tensor cu_seqlens_q, cu_seqlens_k, diagonal;
  int64_t max_q, max_k;
  bool causal;
  int64_t window;
};

// One microbatch's plan, made once and used by all layers with the same window. `group`: the ranks that share the
// sequences, in the plan's order; it must outlive this.
struct ContextAttention {
  // Usable once `upload` was started.
  ContextAttention(ProcessGroup* group, const ContextPlan& plan, UploadBlock& upload);

  ProcessGroup* group;
  ContextMethod method;
  std::vector<std::vector<DeviceAttentionCall>> blocks;
};

// `local`: q, k, v of this rank's T / ranks tokens, with scale and softcap; segments and mask come from the plan.
// Returns their out and their lse over all keys. Collective over the group: kGather all-gathers keys and values; kRing
// sends them ranks - 1 times to the next rank, each while the block before is computed, and merges partial outputs in
// the arithmetic type. context null: nothing is cut, and local's own segments and mask count.
AttentionOutput ContextAttentionForward(const AttentionBackend& backend, const ContextAttention* context,
                                        const AttentionArguments& local);

// gradients: of this rank's rows, overwritten. Collective: kGather gathers keys and values again and reduce-scatters
// their gradients; kRing sends keys and values ranks - 1 times and their gradients, which every rank adds to and which
// so come home, ranks times. Gradients travel and add in the arithmetic type, in an order that depends on the group
// alone.
void ContextAttentionBackward(const AttentionBackend& backend, const ContextAttention* context,
                              const AttentionArguments& local, const AttentionOutput& output, const at::Tensor& d_out,
                              AttentionGradients& gradients);

// OK, or why `backend` cannot make this method's calls: besides example's own kind, a ring makes some without a causal
// mask and, where a window cuts chunks, with a diagonal.
absl::Status SupportsContext(const AttentionBackend& backend, ContextMethod method, const AttentionArguments& example);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_CONTEXT_ATTENTION_H_
