// RMSNorm over each head of queries and keys, between projection and rotation.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

struct Part {
  int64_t begin, heads;  // of a row's heads
};

// A part's heads as rows [T * heads, head_dim].
at::Tensor Rows(const at::Tensor& packed, const Part& part, int64_t head_dim) {
  return packed.narrow(1, part.begin * head_dim, part.heads * head_dim).contiguous().view({-1, head_dim});
}

at::Tensor Columns(const at::Tensor& rows, int64_t tokens) { return rows.view({tokens, -1}); }

struct HeadNormFunction : torch::autograd::Function<HeadNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, Weight* q_norm, Weight* k_norm,
                            int64_t heads, int64_t kv_heads, double eps, double offset) {
    const int64_t tokens = qkv.size(0), head_dim = qkv.size(1) / (heads + 2 * kv_heads);
    const RmsNormResult q = RmsNorm(Rows(qkv, {0, heads}, head_dim), at::Tensor(), q_norm->full().data, eps, offset);
    const RmsNormResult k =
        RmsNorm(Rows(qkv, {heads, kv_heads}, head_dim), at::Tensor(), k_norm->full().data, eps, offset);
    context->saved_data["q_norm"] = Pack(q_norm);
    context->saved_data["k_norm"] = Pack(k_norm);
    context->saved_data["sizes"] = std::vector<int64_t>{heads, kv_heads, head_dim};
    context->saved_data["offset"] = offset;
    context->save_for_backward({qkv, q.rstd, k.rstd});
    const int64_t v_begin = (heads + kv_heads) * head_dim;
    return at::cat({Columns(q.y, tokens), Columns(k.y, tokens), qkv.narrow(1, v_begin, kv_heads * head_dim)}, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> sizes = context->saved_data.at("sizes").toIntVector();
    const int64_t heads = sizes[0], kv_heads = sizes[1], head_dim = sizes[2], tokens = saved[0].size(0);
    const at::Tensor dy = gradients[0].contiguous();
    const auto norm_backward = [&](const char* name, const Part& part, const at::Tensor& rstd) {
      Weight& norm = Saved<Weight>(context, name);
      const at::Tensor weight = norm.full().data;
      at::Tensor d_weight = at::zeros(weight.sizes(), rstd.options());
      const at::Tensor dx =
          RmsNormBackward(Rows(saved[0], part, head_dim), rstd, weight, Rows(dy, part, head_dim), at::Tensor(),
                          norm.trainable() ? &d_weight : nullptr, context->saved_data.at("offset").toDouble());
      if (norm.trainable()) AddVectorGradient(norm, d_weight);
      return Columns(dx, tokens);
    };
    const at::Tensor dq = norm_backward("q_norm", {0, heads}, saved[1]);
    const at::Tensor dk = norm_backward("k_norm", {heads, kv_heads}, saved[2]);
    const at::Tensor dv = dy.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim);
    return {
        at::cat({dq, dk, dv}, 1), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor HeadNorm(const at::Tensor& qkv, Weight& q_norm, Weight& k_norm, int64_t heads, int64_t kv_heads, double eps,
                    double offset) {
  return HeadNormFunction::apply(qkv, &q_norm, &k_norm, heads, kv_heads, eps, offset);
}

}  // namespace trireme
