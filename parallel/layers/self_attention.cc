#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sum.h>

#include <cmath>

#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

// The three parts of a packed projection [T, (heads + 2 kv_heads) d], as views.
struct PackedViews {
  at::Tensor q, k, v;
  PackedViews(const at::Tensor& qkv, const SelfAttentionArguments& a) {
    const at::Tensor heads = qkv.view({qkv.size(0), a.heads + 2 * a.kv_heads, a.head_dim});
    q = heads.narrow(1, 0, a.heads);
    k = heads.narrow(1, a.heads, a.kv_heads);
    v = heads.narrow(1, a.heads + a.kv_heads, a.kv_heads);
  }
};

// Segments, mask and scores' numbers; scale: where the arguments say nothing.
AttentionArguments WithoutHeads(const SelfAttentionArguments& a, double scale) {
  AttentionArguments arguments;
  arguments.cu_seqlens_q = arguments.cu_seqlens_k = a.cu_seqlens;
  arguments.max_q = arguments.max_k = a.max_seqlen;
  arguments.window = a.window;
  arguments.scale = a.scale > 0 ? a.scale : scale;
  arguments.softcap = a.softcap;
  arguments.slopes = a.slopes;
  return arguments;
}

AttentionArguments BackendArguments(const at::Tensor& qkv, const SelfAttentionArguments& a) {
  const PackedViews views(qkv, a);
  AttentionArguments arguments = WithoutHeads(a, 1.0 / std::sqrt(static_cast<double>(a.head_dim)));
  arguments.q = views.q;
  arguments.k = views.k;
  arguments.v = views.v;
  return arguments;
}

// [heads, 1], in lse's type.
at::Tensor SinkScores(Weight& sinks, const at::Tensor& lse) { return sinks.full().data.to(lse).unsqueeze(1); }

// A score more in every softmax: all probabilities shrink by the same share.
AttentionOutput WithSinks(const AttentionOutput& plain, Weight& sinks) {
  const at::Tensor scores = SinkScores(sinks, plain.lse);
  const at::Tensor share = at::sigmoid(plain.lse - scores).t().unsqueeze(2);  // [tokens, heads, 1]
  return {(plain.out * share).to(plain.out.scalar_type()), at::logaddexp(plain.lse, scores)};
}

// The sink's value is nothing: its probability p passes -p (out . d_out) to its score.
void AddSinkGradient(Weight* sinks, const AttentionOutput& output, const at::Tensor& d_out) {
  if (sinks == nullptr || !sinks->trainable()) return;
  const at::Tensor p = (SinkScores(*sinks, output.lse) - output.lse).exp();  // [heads, tokens]
  const at::Tensor dots = at::sum(output.out.to(p.scalar_type()) * d_out.to(p.scalar_type()), {2}).t();
  AddVectorGradient(*sinks, -at::sum(p * dots, {1}));
}

AttentionOutput Attend(const SelfAttentionArguments& a, const AttentionArguments& arguments) {
  const AttentionOutput plain = a.cache != nullptr ? a.cache->Attend(*a.backend, arguments)
                                                   : ContextAttentionForward(*a.backend, a.context, arguments);
  return a.sinks == nullptr ? plain : WithSinks(plain, *a.sinks);
}

struct SelfAttentionFunction : torch::autograd::Function<SelfAttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const SelfAttentionArguments& a) {
    at::Tensor rotated = qkv;
    if (a.rope != nullptr && !a.rotated)
      ApplyRope(rotated, a.heads + a.kv_heads, a.head_dim, a.positions, *a.rope, /*inverse=*/false);
    const std::vector<at::Tensor> kept = TakeKept(a.kept, kKeepAttention, [&] {
      const AttentionOutput output = Attend(a, BackendArguments(rotated, a));
      return std::vector<at::Tensor>{output.out, output.lse};
    });
    at::Tensor out = kept[0].view({qkv.size(0), a.heads * a.head_dim});
    context->saved_data["sizes"] = std::vector<int64_t>{a.heads, a.kv_heads, a.head_dim, a.max_seqlen, a.window};
    context->saved_data["scale"] = a.scale;
    context->saved_data["softcap"] = a.softcap;
    context->saved_data["rope"] = Pack(a.rope);
    context->saved_data["backend"] = Pack(a.backend);
    context->saved_data["context"] = Pack(a.context);
    context->saved_data["sinks"] = Pack(a.sinks);
    variable_list saving = {rotated, out, kept[1], a.positions, a.cu_seqlens};
    if (a.slopes.defined()) saving.push_back(a.slopes);
    context->save_for_backward(saving);
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> sizes = context->saved_data.at("sizes").toIntVector();
    SelfAttentionArguments a;
    a.heads = sizes[0];
    a.kv_heads = sizes[1];
    a.head_dim = sizes[2];
    a.max_seqlen = sizes[3];
    a.window = sizes[4];
    a.scale = context->saved_data.at("scale").toDouble();
    a.softcap = context->saved_data.at("softcap").toDouble();
    a.positions = saved[3];
    a.cu_seqlens = saved[4];
    if (saved.size() > 5) a.slopes = saved[5];
    a.rope = SavedPointer<const RopeTable>(context, "rope");
    a.backend = SavedPointer<const AttentionBackend>(context, "backend");
    a.context = SavedPointer<const ContextAttention>(context, "context");
    const at::Tensor& qkv = saved[0];
    at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
    const PackedViews views(d_qkv, a);
    AttentionGradients parts = {views.q, views.k, views.v};
    const std::vector<int64_t> shape = {qkv.size(0), a.heads, a.head_dim};
    const AttentionOutput output = {saved[1].view(shape), saved[2]};
    const at::Tensor d_out = gradients[0].contiguous().view(shape);
    AddSinkGradient(SavedPointer<Weight>(context, "sinks"), output, d_out);
    ContextAttentionBackward(*a.backend, a.context, BackendArguments(qkv, a), output, d_out, parts);
    if (a.rope != nullptr) ApplyRope(d_qkv, a.heads + a.kv_heads, a.head_dim, a.positions, *a.rope, /*inverse=*/true);
    return {d_qkv, at::Tensor()};
  }
};

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const SelfAttentionArguments& a) {
    context->saved_data["heads"] = a.heads + a.kv_heads;
    context->saved_data["head_dim"] = a.head_dim;
    context->saved_data["rope"] = Pack(a.rope);
    context->save_for_backward({a.positions});
    at::Tensor rotated = qkv.clone();
    ApplyRope(rotated, a.heads + a.kv_heads, a.head_dim, a.positions, *a.rope, /*inverse=*/false);
    return rotated;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    at::Tensor d_qkv = gradients[0].clone();
    ApplyRope(d_qkv, context->saved_data.at("heads").toInt(), context->saved_data.at("head_dim").toInt(),
              context->get_saved_variables()[0], *SavedPointer<const RopeTable>(context, "rope"), /*inverse=*/true);
    return {d_qkv, at::Tensor()};
  }
};

// Rotates the last `turning` dimensions of each head of x [T, heads, width], in place.
void RotateLast(const at::Tensor& x, int64_t turning, const SelfAttentionArguments& a, bool inverse) {
  at::Tensor part = x.narrow(2, x.size(2) - turning, turning);
  at::Tensor rows = part.contiguous().view({x.size(0), x.size(1) * turning});
  ApplyRope(rows, x.size(1), turning, a.positions, *a.rope, inverse);
  if (!part.is_contiguous()) part.copy_(rows.view(part.sizes()));  // else they are the same memory
}

struct LatentAttentionFunction : torch::autograd::Function<LatentAttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& kv,
                            const at::Tensor& shared, const LatentHeads& head, const SelfAttentionArguments& a) {
    const at::Tensor turned = shared.clone();
    RotateLast(q.view({q.size(0), a.heads, head.still + head.turning}), head.turning, a, /*inverse=*/false);
    RotateLast(turned.unsqueeze(1), head.turning, a, /*inverse=*/false);
    const std::vector<at::Tensor> kept = TakeKept(a.kept, kKeepAttention, [&] {
      const AttentionOutput output = Attend(a, Expanded(q, kv, turned, head, a));
      return std::vector<at::Tensor>{output.out, output.lse};
    });
    context->saved_data["sizes"] =
        std::vector<int64_t>{a.heads, a.max_seqlen, a.window, head.still, head.turning, head.value};
    context->saved_data["scale"] = a.scale;
    context->saved_data["rope"] = Pack(a.rope);
    context->saved_data["backend"] = Pack(a.backend);
    context->saved_data["context"] = Pack(a.context);
    context->save_for_backward({q, kv, turned, kept[0], kept[1], a.positions, a.cu_seqlens});
    return kept[0].view({q.size(0), a.heads * head.value});
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &kv = saved[1], &turned = saved[2];
    const std::vector<int64_t> sizes = context->saved_data.at("sizes").toIntVector();
    SelfAttentionArguments a;
    a.heads = sizes[0];
    a.max_seqlen = sizes[1];
    a.window = sizes[2];
    a.scale = context->saved_data.at("scale").toDouble();
    a.positions = saved[5];
    a.cu_seqlens = saved[6];
    a.rope = SavedPointer<const RopeTable>(context, "rope");
    a.backend = SavedPointer<const AttentionBackend>(context, "backend");
    a.context = SavedPointer<const ContextAttention>(context, "context");
    const LatentHeads head = {sizes[3], sizes[4], sizes[5]};
    const AttentionArguments arguments = Expanded(q, kv, turned, head, a);
    const at::Tensor dq = at::empty(arguments.q.sizes(), q.options()), dk = at::empty(arguments.k.sizes(), q.options()),
                     d_kv = at::empty({q.size(0), a.heads, head.still + head.value}, q.options());
    AttentionGradients parts = {dq, dk, d_kv.narrow(2, head.still, head.value)};
    ContextAttentionBackward(*a.backend, a.context, arguments, {saved[3], saved[4]},
                             gradients[0].contiguous().view(saved[3].sizes()), parts);
    RotateLast(dq, head.turning, a, /*inverse=*/true);
    d_kv.narrow(2, 0, head.still).copy_(dk.narrow(2, 0, head.still));
    const at::Tensor d_shared =
        at::sum(dk.narrow(2, head.still, head.turning), {1}, /*keepdim=*/false, ArithmeticType(q.scalar_type()))
            .to(q.scalar_type());
    RotateLast(d_shared.unsqueeze(1), head.turning, a, /*inverse=*/true);
    return {dq.view(q.sizes()), d_kv.view(kv.sizes()), d_shared, at::Tensor(), at::Tensor()};
  }

 private:
  // Every head with its own keys and values.
  static AttentionArguments Expanded(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& turned,
                                     const LatentHeads& head, const SelfAttentionArguments& a) {
    const int64_t tokens = q.size(0);
    const at::Tensor heads = kv.view({tokens, a.heads, head.still + head.value});
    AttentionArguments arguments = WithoutHeads(a, 1.0 / std::sqrt(static_cast<double>(head.still + head.turning)));
    arguments.q = q.view({tokens, a.heads, head.still + head.turning});
    arguments.k =
        at::cat({heads.narrow(2, 0, head.still), turned.unsqueeze(1).expand({tokens, a.heads, head.turning})}, 2);
    arguments.v = heads.narrow(2, head.still, head.value);
    return arguments;
  }
};

struct AllRowsFunction : torch::autograd::Function<AllRowsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, ProcessGroup* tensor) {
    context->saved_data["tensor"] = Pack(tensor);
    return GatherRows(*tensor, x.contiguous());
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {ReduceRows(Saved<ProcessGroup>(context, "tensor"), gradients[0].contiguous()), at::Tensor()};
  }
};

}  // namespace

at::Tensor LatentAttention(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& shared, const LatentHeads& head,
                           const SelfAttentionArguments& arguments) {
  return LatentAttentionFunction::apply(q, kv, shared, head, arguments);
}

at::Tensor AllRows(const at::Tensor& x, ProcessGroup& tensor) {
  return tensor.size() == 1 ? x : AllRowsFunction::apply(x, &tensor);
}

at::Tensor Rotate(const at::Tensor& qkv, const SelfAttentionArguments& arguments) {
  return arguments.rope == nullptr ? qkv : RotateFunction::apply(qkv, arguments);
}

at::Tensor SelfAttention(const at::Tensor& qkv, const SelfAttentionArguments& arguments) {
  return SelfAttentionFunction::apply(qkv, arguments);
}

}  // namespace trireme
