#include <ATen/ops/zeros.h>

#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

// The norm's gradient, with its weight's handed to the sink.
at::Tensor NormBackward(Weight& norm, const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& dy,
                        const at::Tensor& d_h) {
  const at::Tensor weight = norm.full().data;
  if (!norm.trainable()) return RmsNormBackward(h, rstd, weight, dy, d_h, nullptr);
  at::Tensor d_weight = at::zeros(weight.sizes(), rstd.options());
  at::Tensor dx = RmsNormBackward(h, rstd, weight, dy, d_h, &d_weight);
  norm.AddGradient([d_weight](at::Tensor& accumulator, bool overwrite) {
    overwrite ? CopyConverted(d_weight, accumulator) : AddInto(accumulator, d_weight);
  });
  return dx;
}

struct NormFunction : torch::autograd::Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* norm, double eps) {
    RmsNormResult result = RmsNorm(x, at::Tensor(), norm->full().data, eps);
    context->saved_data["norm"] = Pack(norm);
    context->save_for_backward({x, result.rstd});
    return result.y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {NormBackward(Saved<Weight>(context, "norm"), saved[0], saved[1], gradients[0].contiguous(), at::Tensor()),
            at::Tensor(), at::Tensor()};
  }
};

struct NormLinearFunction : torch::autograd::Function<NormLinearFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const std::optional<at::Tensor>& optional_delta, Weight* norm, double eps,
                               Weight* linear, ProcessGroup* tensor, KeptResults* kept, const char* name) {
    const at::Tensor delta = optional_delta.value_or(at::Tensor());
    RmsNormResult result = RmsNorm(x, delta, norm->full().data, eps);
    context->saved_data["norm"] = Pack(norm);
    context->saved_data["linear"] = Pack(linear);
    context->saved_data["tensor"] = Pack(tensor);
    context->saved_data["with_delta"] = delta.defined();
    context->set_materialize_grads(false);
    context->save_for_backward({result.h, result.rstd});
    at::Tensor y = TakeKept(kept, name, [&] {
      return std::vector<at::Tensor>{MatmulTransposed(GatherRows(*tensor, result.y), linear->full().data)};
    })[0];
    // Without delta, h is x itself: it is not returned, so that autograd sees no output that is an input.
    if (!delta.defined()) return {y};
    return {y, result.h};
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &h = saved[0], &rstd = saved[1];
    Weight& norm = Saved<Weight>(context, "norm");
    Weight& linear = Saved<Weight>(context, "linear");
    ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
    const bool with_delta = context->saved_data.at("with_delta").toBool();
    const at::Tensor dy = gradients[0].contiguous();  // [T, N/n]
    const at::Tensor norm_values = norm.full().data;

    // The input travels while d_normed is computed, and that while the weight's gradient is.
    const bool now = linear.trainable() && !linear.gradient_deferred();
    PendingRows normed = now ? StartGatherRows(tensor, RmsNormAgain(h, rstd, norm_values)) : PendingRows();
    PendingRows d_normed = StartReduceRows(tensor, Matmul(dy, linear.full().data));
    if (now) {
      linear.AddGradient(
          [&](at::Tensor& accumulator, bool overwrite) { AddOuterProduct(dy, normed.Get(), accumulator, overwrite); });
    } else if (linear.trainable()) {
      linear.AddGradient([dy, h, rstd, values = norm_values.clone(), &tensor](at::Tensor& accumulator, bool overwrite) {
        AddOuterProduct(dy, GatherRows(tensor, RmsNormAgain(h, rstd, values)), accumulator, overwrite);
      });
    }
    normed = PendingRows();
    const at::Tensor d_h = with_delta && gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    at::Tensor dx = NormBackward(norm, h, rstd, d_normed.Get(), d_h);
    return {dx,           with_delta ? dx : at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::optional<at::Tensor>& optional_residual, Weight* weight, ProcessGroup* tensor,
                            bool swiglu) {
    const at::Tensor residual = optional_residual.value_or(at::Tensor());
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["tensor"] = Pack(tensor);
    context->saved_data["swiglu"] = swiglu;
    context->saved_data["residual"] = residual.defined();
    context->save_for_backward({x});
    const at::Tensor input = swiglu ? SwiGluForward(x) : x, values = weight->full().data;
    if (tensor->size() == 1) return MatmulTransposed(input, values, residual);
    at::Tensor sum = ReduceRows(*tensor, MatmulTransposed(input, values));
    if (residual.defined()) AddInto(sum, residual);
    return sum;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor x = context->get_saved_variables()[0];
    Weight& weight = Saved<Weight>(context, "weight");
    ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
    const bool swiglu = context->saved_data.at("swiglu").toBool();
    const at::Tensor d_part = gradients[0].contiguous();  // [t, N]
    const at::Tensor dy = GatherRows(tensor, d_part);
    at::Tensor dx;
    if (context->needs_input_grad(0)) {
      dx = Matmul(dy, weight.full().data);
      if (swiglu) dx = SwiGluBackward(x, dx);
    }
    if (weight.trainable()) {
      weight.AddGradient([dy, x, swiglu](at::Tensor& accumulator, bool overwrite) {
        AddOuterProduct(dy, swiglu ? SwiGluForward(x) : x, accumulator, overwrite);
      });
    }
    return {dx, context->saved_data.at("residual").toBool() ? d_part : at::Tensor(), at::Tensor(), at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

at::Tensor Norm(const at::Tensor& x, Weight& norm, double eps) { return NormFunction::apply(x, &norm, eps); }

std::pair<at::Tensor, at::Tensor> NormLinear(const at::Tensor& x, const at::Tensor& delta, Weight& norm, double eps,
                                             Weight& linear, ProcessGroup& tensor, KeptResults* kept,
                                             const char* name) {
  variable_list outputs = NormLinearFunction::apply(x, Present(delta), &norm, eps, &linear, &tensor, kept, name);
  return {delta.defined() ? outputs[1] : x, outputs[0]};
}

at::Tensor Linear(const at::Tensor& x, Weight& weight, ProcessGroup& tensor, const at::Tensor& residual) {
  return LinearFunction::apply(x, Present(residual), &weight, &tensor, /*swiglu=*/false);
}

at::Tensor SwiGluLinear(const at::Tensor& gate_up, Weight& weight, ProcessGroup& tensor, const at::Tensor& residual) {
  return LinearFunction::apply(gate_up, Present(residual), &weight, &tensor, /*swiglu=*/true);
}

}  // namespace trireme
