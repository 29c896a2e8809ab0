#include "parallel/layers/context_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "kernels/base/ops.h"

namespace trireme {
namespace {

// Keys and values travel as one tensor [tokens, kv_heads, head_dim + value_dim].
at::Tensor Packed(const AttentionArguments& local) { return at::cat({local.k, local.v}, 2); }
at::Tensor KeysOf(const at::Tensor& packed, const AttentionArguments& local) {
  return packed.narrow(2, 0, local.k.size(2));
}
at::Tensor ValuesOf(const at::Tensor& packed, const AttentionArguments& local) {
  return packed.narrow(2, local.k.size(2), local.v.size(2));
}

AttentionArguments CallArguments(const DeviceAttentionCall& call, const AttentionArguments& local,
                                 const at::Tensor& block) {
  const at::Tensor keys = call.keys.Of(block);
  AttentionArguments a = local;
  a.q = call.queries.Of(local.q);
  a.k = KeysOf(keys, local);
  a.v = ValuesOf(keys, local);
  a.cu_seqlens_q = call.cu_seqlens_q;
  a.cu_seqlens_k = call.cu_seqlens_k;
  a.max_q = call.max_q;
  a.max_k = call.max_k;
  a.diagonal = call.diagonal;
  a.causal = call.causal;
  a.window = call.window;
  return a;
}

// A partial softmax joins what came before: both are weighted by their share of the whole sum. The first part has all
// queries, each with its own key, so no lse before it is -inf.
void Merge(const DeviceAttentionCall& call, const AttentionOutput& part, AttentionOutput* sum) {
  if (!sum->out.defined()) {
    *sum = part;
    return;
  }
  const at::ScalarType wide = sum->lse.scalar_type();
  sum->out = sum->out.to(wide);
  const at::Tensor lse = call.queries.Of(sum->lse, 1), merged = at::logaddexp(lse, part.lse);
  const auto share = [&](const at::Tensor& x) { return (x - merged).exp_().t().unsqueeze(2); };  // [tokens, heads, 1]
  const at::Tensor out = call.queries.Of(sum->out) * share(lse) + part.out.to(wide) * share(part.lse);
  call.queries.Write(out, sum->out);
  call.queries.Write(merged, sum->lse, 1);
}

void ForwardBlock(const AttentionBackend& backend, const std::vector<DeviceAttentionCall>& calls,
                  const AttentionArguments& local, const at::Tensor& block, AttentionOutput* sum) {
  for (const DeviceAttentionCall& call : calls) Merge(call, backend.forward(CallArguments(call, local, block)), sum);
}

// What backward passes of all blocks read and add to.
struct BackwardPass {
  const AttentionBackend& backend;
  const AttentionArguments& local;
  const AttentionOutput& output;
  const at::Tensor& d_out;
  at::Tensor dq;  // [tokens, heads, d], arithmetic type

  at::TensorOptions options() const { return dq.options(); }

  // Adds into dq; returns the gradient of `block`.
  at::Tensor Block(const std::vector<DeviceAttentionCall>& calls, const at::Tensor& block) {
    at::Tensor d_block = at::zeros(block.sizes(), options());
    for (const DeviceAttentionCall& call : calls) {
      const AttentionArguments a = CallArguments(call, local, block);
      const at::Tensor part_dq = at::empty(a.q.sizes(), options());
      const at::Tensor d_keys = at::empty({a.k.size(0), a.k.size(1), a.k.size(2) + a.v.size(2)}, options());
      AttentionGradients gradients = {part_dq, KeysOf(d_keys, local), ValuesOf(d_keys, local)};
      // With the whole softmax's out and lse, probabilities and gradients of the part are the whole's.
      backend.backward(a, {call.queries.Of(output.out), call.queries.Of(output.lse, 1).contiguous()},
                       call.queries.Of(d_out), gradients);
      call.queries.AddTo(part_dq, dq);
      call.keys.AddTo(d_keys, d_block);
    }
    return d_block;
  }
};

at::Tensor GatherTokens(ProcessGroup& group, const at::Tensor& own) {
  std::vector<int64_t> sizes = own.sizes().vec();
  sizes[0] *= group.size();
  at::Tensor all = at::empty(sizes, own.options());
  group.AllGather(all, own).Wait();
  return all;
}

// Rank r of n sends to r + 1 and receives from r - 1: after s steps it holds what was rank r - s's.
struct Ring {
  explicit Ring(ProcessGroup& group) : group(group), size(group.size()), rank(group.rank()) {}
  int Owner(int step) const { return (rank + size - step) % size; }
  Work Start(const at::Tensor& outgoing, const at::Tensor& incoming) {
    return group.Exchange({{PeerTransfer::kSend, outgoing, (rank + 1) % size},
                           {PeerTransfer::kReceive, incoming, (rank + size - 1) % size}});
  }
  // Calls body(owner, block) with every rank's block, this rank's first; the next one is under way meanwhile.
  template <typename Body>
  void Pass(at::Tensor block, Body&& body) {
    for (int step = 0; step < size; ++step) {
      at::Tensor incoming;
      Work work;
      if (step + 1 < size) {
        incoming = at::empty_like(block);
        work = Start(block, incoming);
      }
      body(Owner(step), block);
      work.Wait();
      block = incoming;
    }
  }

  ProcessGroup& group;
  const int size, rank;
};

at::Tensor GatherBackward(const ContextAttention& context, BackwardPass* pass) {
  const at::Tensor own = Packed(pass->local);
  const at::Tensor d_all = pass->Block(context.blocks[0], GatherTokens(*context.group, own));
  at::Tensor d_own = at::empty(own.sizes(), pass->options());
  context.group->ReduceScatter(d_own, d_all).Wait();
  return d_own;
}

// A block's gradient follows it one step behind and takes one step more, home.
at::Tensor RingBackward(const ContextAttention& context, BackwardPass* pass) {
  Ring ring(*context.group);
  at::Tensor arriving;
  Work work;
  ring.Pass(Packed(pass->local), [&](int owner, const at::Tensor& block) {
    at::Tensor d_block = pass->Block(context.blocks[owner], block);
    work.Wait();
    if (arriving.defined()) d_block += arriving;
    arriving = at::empty_like(d_block);
    work = ring.Start(d_block, arriving);
  });
  work.Wait();
  return arriving;
}

}  // namespace

RowSelection::RowSelection(const std::vector<int64_t>& index, UploadBlock& upload) {
  if (index.empty()) return;
  begin_ = index.front();
  size_ = static_cast<int64_t>(index.size());
  for (int64_t i = 0; i < size_; ++i) {
    if (index[i] == begin_ + i) continue;
    index_ = upload.Add(index);
    return;
  }
}

at::Tensor RowSelection::Of(const at::Tensor& whole, int64_t dim) const {
  if (index_.defined()) return whole.index_select(dim, index_);
  return size_ == 0 ? whole : whole.narrow(dim, begin_, size_);
}

void RowSelection::Write(const at::Tensor& rows, at::Tensor whole, int64_t dim) const {
  if (index_.defined()) {
    whole.index_copy_(dim, index_, rows);
  } else {
    Of(whole, dim).copy_(rows);
  }
}

// On a GPU a row's additions come in any order: at most two to a zero, which give the same bits either way.
void RowSelection::AddTo(const at::Tensor& rows, at::Tensor whole) const {
  if (index_.defined()) {
    whole.index_add_(0, index_, rows);
  } else {
    Of(whole).add_(rows);
  }
}

ContextAttention::ContextAttention(ProcessGroup* group, const ContextPlan& plan, UploadBlock& upload)
    : group(group), method(plan.method) {
  TRIREME_CHECK(plan.blocks.size() == (method == ContextMethod::kGather ? 1 : static_cast<size_t>(group->size())),
                "a plan of ", plan.blocks.size(), " blocks for ", group->size(), " ranks");
  for (const std::vector<AttentionCall>& calls : plan.blocks) {
    std::vector<DeviceAttentionCall>& block = blocks.emplace_back();
    for (const AttentionCall& call : calls) {
      block.push_back({RowSelection(call.query_index, upload), RowSelection(call.key_index, upload),
                       upload.Add(call.cu_seqlens_q), upload.Add(call.cu_seqlens_k),
                       call.diagonal.empty() ? at::Tensor() : upload.Add(call.diagonal), call.max_q, call.max_k,
                       call.causal, call.window});
    }
  }
}

AttentionOutput ContextAttentionForward(const AttentionBackend& backend, const ContextAttention* context,
                                        const AttentionArguments& local) {
  if (context == nullptr) return backend.forward(local);
  AttentionOutput sum;
  if (context->method == ContextMethod::kGather) {
    ForwardBlock(backend, context->blocks[0], local, GatherTokens(*context->group, Packed(local)), &sum);
  } else {
    Ring(*context->group).Pass(Packed(local), [&](int owner, const at::Tensor& block) {
      ForwardBlock(backend, context->blocks[owner], local, block, &sum);
    });
  }
  sum.out = sum.out.to(local.q.scalar_type());
  return sum;
}

void ContextAttentionBackward(const AttentionBackend& backend, const ContextAttention* context,
                              const AttentionArguments& local, const AttentionOutput& output, const at::Tensor& d_out,
                              AttentionGradients& gradients) {
  if (context == nullptr) return backend.backward(local, output, d_out, gradients);
  const at::TensorOptions wide = local.q.options().dtype(ArithmeticType(local.q.scalar_type()));
  BackwardPass pass = {backend, local, output, d_out, at::zeros(local.q.sizes(), wide)};
  const at::Tensor d_own =
      context->method == ContextMethod::kGather ? GatherBackward(*context, &pass) : RingBackward(*context, &pass);
  gradients.dq.copy_(pass.dq);
  gradients.dk.copy_(KeysOf(d_own, local));
  gradients.dv.copy_(ValuesOf(d_own, local));
}

absl::Status SupportsContext(const AttentionBackend& backend, ContextMethod method, const AttentionArguments& example) {
  RETURN_IF_ERROR(backend.supports(example));
  if (method == ContextMethod::kGather) return absl::OkStatus();
  if (example.slopes.defined()) return absl::UnimplementedError("ALiBi's distances are not known to a rank of a ring");
  AttentionArguments cut = example;
  if (example.window > 0) {
    cut.diagonal = at::zeros({1}, at::TensorOptions().dtype(at::kInt));
    RETURN_IF_ERROR(backend.supports(cut));
  }
  AttentionArguments whole = example;
  whole.causal = false;
  whole.window = 0;
  return backend.supports(whole);
}

}  // namespace trireme
