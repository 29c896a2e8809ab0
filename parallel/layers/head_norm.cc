// Norms of queries and keys, between projection and rotation or after it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <array>

#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

// Which heads of a row are normed by which weight.
struct NormedHeads {
  int64_t begin, heads;
  Weight *weight, *bias;
};

std::array<NormedHeads, 2> Parts(const HeadNormArguments& a) {
  return {{{0, a.heads, a.q_weight, a.q_bias}, {a.heads, a.kv_heads, a.k_weight, a.k_bias}}};
}

int64_t HeadDim(const at::Tensor& qkv, const HeadNormArguments& a) { return qkv.size(1) / (a.heads + 2 * a.kv_heads); }

// A part's heads as rows [T * heads, head_dim].
at::Tensor HeadRows(const at::Tensor& packed, const NormedHeads& part, int64_t head_dim) {
  return packed.narrow(1, part.begin * head_dim, part.heads * head_dim).contiguous().view({-1, head_dim});
}

// What a row is multiplied with, [rows or 1, width] in the arithmetic type: the weight with its offset.
at::Tensor Scale(const NormedHeads& part, double offset, at::IntArrayRef shape, at::ScalarType type) {
  return (part.weight->full().data.to(type) + offset).view(shape);
}

bool Trains(const Weight* weight) { return weight != nullptr && weight->trainable(); }

// Hands the gradient of a weight or bias that multiplied or shifted rows [T, heads, head_dim].
void AddRowsGradient(Weight* weight, const at::Tensor& gradient) {
  if (!Trains(weight)) return;
  const int64_t head_dim = gradient.size(2);
  const bool shared = weight->full().data.numel() == head_dim;
  AddVectorGradient(*weight, at::sum(gradient, shared ? at::IntArrayRef{0, 1} : at::IntArrayRef{0}).reshape({-1}));
}

// RMSNorm of each head with one weight: one kernel. Everything else is composed of libtorch's operations, in the
// arithmetic type, and rounded once.
bool IsPlain(const HeadNormArguments& a, int64_t head_dim) {
  return !a.layer_norm && !a.whole_width && a.q_weight->full().data.numel() == head_dim;
}

// A part's rows on their way through a norm that is not plain.
struct Composed {
  at::Tensor normed;  // [T, heads, head_dim], before weight and bias
  at::Tensor rstd;    // [T, heads or 1, 1]
  at::Tensor scale;   // [heads or 1, head_dim]; undefined: none
};

Composed Compose(const HeadNormArguments& a, const at::Tensor& qkv, const NormedHeads& part, int64_t head_dim,
                 ProcessGroup& tensor) {
  const at::ScalarType type = ArithmeticType(qkv.scalar_type());
  Composed c;
  at::Tensor x = qkv.narrow(1, part.begin * head_dim, part.heads * head_dim).to(type).view({-1, part.heads, head_dim});
  if (a.layer_norm) x = x - x.mean({2}, /*keepdim=*/true);
  if (a.whole_width) {
    // Heads that several ranks hold are counted by each, in the sum and in the width.
    at::Tensor squares = at::sum(x.square(), {1, 2}, /*keepdim=*/true);
    tensor.AllReduce(squares, ReduceOp::kSum).Wait();
    const auto width = static_cast<double>(part.heads * head_dim * tensor.size());
    c.rstd = at::rsqrt(squares / width + a.eps);
  } else {
    c.rstd = at::rsqrt(x.square().mean({2}, /*keepdim=*/true) + a.eps);
  }
  c.normed = x * c.rstd;
  if (part.weight != nullptr) c.scale = Scale(part, a.offset, {-1, head_dim}, type);
  return c;
}

struct HeadNormFunction : torch::autograd::Function<HeadNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const HeadNormArguments& a,
                            ProcessGroup* tensor) {
    const int64_t tokens = qkv.size(0), head_dim = HeadDim(qkv, a), v_begin = (a.heads + a.kv_heads) * head_dim;
    const at::Tensor v = qkv.narrow(1, v_begin, a.kv_heads * head_dim);
    context->saved_data["kind"] = std::vector<int64_t>{a.heads, a.kv_heads, a.layer_norm, a.whole_width};
    context->saved_data["eps"] = a.eps;
    context->saved_data["offset"] = a.offset;
    context->saved_data["q_weight"] = Pack(a.q_weight);
    context->saved_data["k_weight"] = Pack(a.k_weight);
    context->saved_data["q_bias"] = Pack(a.q_bias);
    context->saved_data["k_bias"] = Pack(a.k_bias);
    context->saved_data["tensor"] = Pack(tensor);
    variable_list saved = {qkv};
    std::vector<at::Tensor> columns;
    for (const NormedHeads& part : Parts(a)) {
      if (IsPlain(a, head_dim)) {
        RmsNormResult result =
            RmsNorm(HeadRows(qkv, part, head_dim), at::Tensor(), part.weight->full().data, a.eps, a.offset);
        saved.push_back(result.rstd);
        columns.push_back(result.y.view({tokens, -1}));
        continue;
      }
      const Composed c = Compose(a, qkv, part, head_dim, *tensor);
      at::Tensor y = c.scale.defined() ? c.normed * c.scale : c.normed;
      if (part.bias != nullptr) y = y + part.bias->full().data.to(y.scalar_type()).view({-1, head_dim});
      columns.push_back(y.to(qkv.scalar_type()).view({tokens, -1}));
    }
    context->save_for_backward(saved);
    columns.push_back(v);
    return at::cat(columns, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& qkv = saved[0];
    HeadNormArguments a;
    const std::vector<int64_t> kind = context->saved_data.at("kind").toIntVector();
    a.heads = kind[0];
    a.kv_heads = kind[1];
    a.layer_norm = kind[2] != 0;
    a.whole_width = kind[3] != 0;
    a.eps = context->saved_data.at("eps").toDouble();
    a.offset = context->saved_data.at("offset").toDouble();
    a.q_weight = SavedPointer<Weight>(context, "q_weight");
    a.k_weight = SavedPointer<Weight>(context, "k_weight");
    a.q_bias = SavedPointer<Weight>(context, "q_bias");
    a.k_bias = SavedPointer<Weight>(context, "k_bias");
    ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
    const int64_t tokens = qkv.size(0), head_dim = HeadDim(qkv, a);
    const at::Tensor dy = gradients[0].contiguous();
    std::vector<at::Tensor> columns;
    size_t next = 1;
    for (const NormedHeads& part : Parts(a)) {
      columns.push_back(IsPlain(a, head_dim) ? PlainBackward(a, qkv, saved[next++], dy, part, head_dim)
                                             : ComposedBackward(a, qkv, dy, part, head_dim, tensor));
      columns.back() = columns.back().view({tokens, -1});
    }
    columns.push_back(dy.narrow(1, (a.heads + a.kv_heads) * head_dim, a.kv_heads * head_dim));
    return {at::cat(columns, 1), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor PlainBackward(const HeadNormArguments& a, const at::Tensor& qkv, const at::Tensor& rstd,
                                  const at::Tensor& dy, const NormedHeads& part, int64_t head_dim) {
    const at::Tensor weight = part.weight->full().data;
    at::Tensor d_weight = at::zeros(weight.sizes(), rstd.options());
    at::Tensor dx = RmsNormBackward(HeadRows(qkv, part, head_dim), rstd, weight, HeadRows(dy, part, head_dim),
                                    at::Tensor(), part.weight->trainable() ? &d_weight : nullptr, a.offset);
    if (part.weight->trainable()) AddVectorGradient(*part.weight, d_weight);
    return dx;
  }

  static at::Tensor ComposedBackward(const HeadNormArguments& a, const at::Tensor& qkv, const at::Tensor& dy,
                                     const NormedHeads& part, int64_t head_dim, ProcessGroup& tensor) {
    const Composed c = Compose(a, qkv, part, head_dim, tensor);
    const at::Tensor d =
        dy.narrow(1, part.begin * head_dim, part.heads * head_dim).to(c.normed.scalar_type()).view(c.normed.sizes());
    AddRowsGradient(part.bias, d);
    AddRowsGradient(part.weight, d * c.normed);
    const at::Tensor g = c.scale.defined() ? d * c.scale : d;
    at::Tensor dots;  // the mean of g * normed over what was normed together
    if (a.whole_width) {
      dots = at::sum(g * c.normed, {1, 2}, /*keepdim=*/true);
      tensor.AllReduce(dots, ReduceOp::kSum).Wait();
      dots = dots / static_cast<double>(part.heads * head_dim * tensor.size());
    } else {
      dots = (g * c.normed).mean({2}, /*keepdim=*/true);
    }
    at::Tensor dx = (g - c.normed * dots) * c.rstd;
    if (a.layer_norm) dx = dx - dx.mean({2}, /*keepdim=*/true);
    return dx.to(qkv.scalar_type());
  }
};

}  // namespace

at::Tensor HeadNorm(const at::Tensor& qkv, const HeadNormArguments& arguments, ProcessGroup& tensor) {
  return HeadNormFunction::apply(qkv, arguments, &tensor);
}

}  // namespace trireme
