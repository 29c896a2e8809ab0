#include <ATen/ops/empty.h>

#include <cmath>

#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"

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

AttentionArguments BackendArguments(const at::Tensor& qkv, const SelfAttentionArguments& a) {
  const PackedViews views(qkv, a);
  AttentionArguments arguments;
  arguments.q = views.q;
  arguments.k = views.k;
  arguments.v = views.v;
  arguments.cu_seqlens_q = arguments.cu_seqlens_k = a.cu_seqlens;
  arguments.max_q = arguments.max_k = a.max_seqlen;
  arguments.window = a.window;
  arguments.scale = a.scale > 0 ? a.scale : 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  arguments.softcap = a.softcap;
  arguments.slopes = a.slopes;
  return arguments;
}

AttentionOutput Attend(const SelfAttentionArguments& a, const AttentionArguments& arguments) {
  return a.cache != nullptr ? a.cache->Attend(*a.backend, arguments)
                            : ContextAttentionForward(*a.backend, a.context, arguments);
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
    ContextAttentionBackward(*a.backend, a.context, BackendArguments(qkv, a), {saved[1].view(shape), saved[2]},
                             gradients[0].contiguous().view(shape), parts);
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

}  // namespace

at::Tensor Rotate(const at::Tensor& qkv, const SelfAttentionArguments& arguments) {
  return arguments.rope == nullptr ? qkv : RotateFunction::apply(qkv, arguments);
}

at::Tensor SelfAttention(const at::Tensor& qkv, const SelfAttentionArguments& arguments) {
  return SelfAttentionFunction::apply(qkv, arguments);
}

}  // namespace trireme
