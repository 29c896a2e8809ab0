#include "kernels/functions.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <optional>

namespace trireme {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Weight& WeightOf(const AutogradContext* context, const char* key) {
  return *reinterpret_cast<Weight*>(static_cast<intptr_t>(context->saved_data.at(key).toInt()));
}
c10::IValue Pack(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(pointer)); }

// Autograd takes optional inputs, not undefined ones.
std::optional<at::Tensor> Present(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

void AddLinearGradient(Weight& weight, const at::Tensor& dy, const at::Tensor& x) {
  if (!weight.trainable()) return;
  weight.AddGradient([dy, x](at::Tensor& accumulator) { AddOuterProduct(dy, x, accumulator); });
}

// The norm's gradient, with its weight's handed to the sink.
at::Tensor NormBackward(Weight& norm, const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& dy,
                        const at::Tensor& d_h) {
  const at::Tensor weight = norm.full().data;
  if (!norm.trainable()) return RmsNormBackward(h, rstd, weight, dy, d_h, nullptr);
  at::Tensor d_weight = at::zeros(weight.sizes(), rstd.options());
  at::Tensor dx = RmsNormBackward(h, rstd, weight, dy, d_h, &d_weight);
  norm.AddGradient([d_weight](at::Tensor& accumulator) { AddInto(accumulator, d_weight); });
  return dx;
}

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& anchor, const at::Tensor& tokens,
                            Weight* weight) {
    context->saved_data["weight"] = Pack(weight);
    context->save_for_backward({tokens});
    return EmbeddingForward(tokens, weight->full().data);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    Weight& weight = WeightOf(context, "weight");
    if (weight.trainable()) {
      weight.AddGradient([tokens = context->get_saved_variables()[0], dy = gradients[0].contiguous()](
                             at::Tensor& accumulator) { AddEmbeddingGradient(tokens, dy, accumulator); });
    }
    return {at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct NormFunction : torch::autograd::Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* norm, double eps) {
    RmsNormResult result = RmsNorm(x, at::Tensor(), norm->full().data, eps);
    context->saved_data["norm"] = Pack(norm);
    context->save_for_backward({x, result.rstd});
    return result.y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {NormBackward(WeightOf(context, "norm"), saved[0], saved[1], gradients[0].contiguous(), at::Tensor()),
            at::Tensor(), at::Tensor()};
  }
};

struct NormLinearFunction : torch::autograd::Function<NormLinearFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const std::optional<at::Tensor>& optional_delta, Weight* norm, double eps,
                               Weight* linear) {
    const at::Tensor delta = optional_delta.value_or(at::Tensor());
    RmsNormResult result = RmsNorm(x, delta, norm->full().data, eps);
    context->saved_data["norm"] = Pack(norm);
    context->saved_data["linear"] = Pack(linear);
    context->saved_data["with_delta"] = delta.defined();
    context->set_materialize_grads(false);
    context->save_for_backward({result.h, result.rstd});
    at::Tensor y = MatmulTransposed(result.y, linear->full().data);
    // Without delta, h is x itself: it is not returned, so that autograd sees no output that is an input.
    if (!delta.defined()) return {y};
    return {y, result.h};
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &h = saved[0], &rstd = saved[1];
    Weight& norm = WeightOf(context, "norm");
    Weight& linear = WeightOf(context, "linear");
    const bool with_delta = context->saved_data.at("with_delta").toBool();
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor d_normed = Matmul(dy, linear.full().data);
    if (linear.trainable()) AddLinearGradient(linear, dy, RmsNormAgain(h, rstd, norm.full().data));
    const at::Tensor d_h = with_delta && gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    at::Tensor dx = NormBackward(norm, h, rstd, d_normed, d_h);
    return {dx, with_delta ? dx : at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::optional<at::Tensor>& optional_residual, Weight* weight, bool swiglu) {
    const at::Tensor residual = optional_residual.value_or(at::Tensor());
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["swiglu"] = swiglu;
    context->saved_data["residual"] = residual.defined();
    context->save_for_backward({x});
    return MatmulTransposed(swiglu ? SwiGluForward(x) : x, weight->full().data, residual);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor x = context->get_saved_variables()[0];
    Weight& weight = WeightOf(context, "weight");
    const bool swiglu = context->saved_data.at("swiglu").toBool();
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor dx;
    if (context->needs_input_grad(0)) {
      dx = Matmul(dy, weight.full().data);
      if (swiglu) dx = SwiGluBackward(x, dx);
    }
    AddLinearGradient(weight, dy, swiglu ? SwiGluForward(x) : x);
    return {dx, context->saved_data.at("residual").toBool() ? dy : at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

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
  arguments.scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  return arguments;
}

struct SelfAttentionFunction : torch::autograd::Function<SelfAttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const SelfAttentionArguments& a) {
    at::Tensor rotated = qkv;
    if (a.rope != nullptr)
      ApplyRope(rotated, a.heads + a.kv_heads, a.head_dim, a.positions, *a.rope, /*inverse=*/false);
    const AttentionOutput output = a.backend->forward(BackendArguments(rotated, a));
    at::Tensor out = output.out.view({qkv.size(0), a.heads * a.head_dim});
    context->saved_data["sizes"] = std::vector<int64_t>{a.heads, a.kv_heads, a.head_dim, a.max_seqlen, a.window};
    context->saved_data["rope"] = Pack(a.rope);
    context->saved_data["backend"] = Pack(a.backend);
    context->save_for_backward({rotated, out, output.lse, a.positions, a.cu_seqlens});
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
    a.positions = saved[3];
    a.cu_seqlens = saved[4];
    a.rope = reinterpret_cast<const RopeTable*>(static_cast<intptr_t>(context->saved_data.at("rope").toInt()));
    a.backend =
        reinterpret_cast<const AttentionBackend*>(static_cast<intptr_t>(context->saved_data.at("backend").toInt()));
    const at::Tensor& qkv = saved[0];
    at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
    const PackedViews views(d_qkv, a);
    AttentionGradients parts = {views.q, views.k, views.v};
    const std::vector<int64_t> shape = {qkv.size(0), a.heads, a.head_dim};
    a.backend->backward(BackendArguments(qkv, a), {saved[1].view(shape), saved[2]},
                        gradients[0].contiguous().view(shape), parts);
    if (a.rope != nullptr) ApplyRope(d_qkv, a.heads + a.kv_heads, a.head_dim, a.positions, *a.rope, /*inverse=*/true);
    return {d_qkv, at::Tensor()};
  }
};

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& dx) {
    context->save_for_backward({dx});
    return at::zeros({}, x.options());
  }
  // The gradient was computed in forward and already carries its scale: the seed's gradient is one by contract.
  static variable_list backward(AutogradContext* context, variable_list) {
    return {context->get_saved_variables()[0], at::Tensor()};
  }
};

}  // namespace

at::Tensor Embedding(const at::Tensor& tokens, Weight& weight, const at::Tensor& anchor) {
  return EmbeddingFunction::apply(anchor, tokens, &weight);
}

at::Tensor Norm(const at::Tensor& x, Weight& norm, double eps) { return NormFunction::apply(x, &norm, eps); }

std::pair<at::Tensor, at::Tensor> NormLinear(const at::Tensor& x, const at::Tensor& delta, Weight& norm, double eps,
                                             Weight& linear) {
  variable_list outputs = NormLinearFunction::apply(x, Present(delta), &norm, eps, &linear);
  return {delta.defined() ? outputs[1] : x, outputs[0]};
}

at::Tensor Linear(const at::Tensor& x, Weight& weight, const at::Tensor& residual) {
  return LinearFunction::apply(x, Present(residual), &weight, /*swiglu=*/false);
}

at::Tensor SwiGluLinear(const at::Tensor& gate_up, Weight& weight, const at::Tensor& residual) {
  return LinearFunction::apply(gate_up, Present(residual), &weight, /*swiglu=*/true);
}

at::Tensor SelfAttention(const at::Tensor& qkv, const SelfAttentionArguments& arguments) {
  return SelfAttentionFunction::apply(qkv, arguments);
}

Loss CrossEntropyHead(const at::Tensor& x, Weight& weight, const at::Tensor& targets, const LossHeadOptions& options) {
  LossHeadResult result;
  {
    at::NoGradGuard no_grad;
    const at::Tensor values = x.detach();
    if (options.with_gradient && weight.trainable()) {
      weight.AddGradient([&](at::Tensor& accumulator) {
        result = LossHead(values, weight.full().data, targets, options, &accumulator);
      });
    } else {
      result = LossHead(values, weight.full().data, targets, options, nullptr);
    }
  }
  Loss loss;
  loss.sums = result.sums;
  if (options.with_gradient) loss.seed = CrossEntropyFunction::apply(x, result.dx);
  return loss;
}

}  // namespace trireme
