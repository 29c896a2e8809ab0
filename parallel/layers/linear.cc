#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include "parallel/layers/adapter.h"
#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

// The norm's gradient, with its weight's handed to the sink.
at::Tensor NormBackward(Weight& norm, double offset, const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& dy,
                        const at::Tensor& d_h) {
  const at::Tensor weight = norm.full().data;
  if (!norm.trainable()) return RmsNormBackward(h, rstd, weight, dy, d_h, nullptr, offset);
  at::Tensor d_weight = at::zeros(weight.sizes(), rstd.options());
  at::Tensor dx = RmsNormBackward(h, rstd, weight, dy, d_h, &d_weight, offset);
  AddVectorGradient(norm, d_weight);
  return dx;
}

struct NormFunction : torch::autograd::Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* norm, double eps, double offset) {
    RmsNormResult result = RmsNorm(x, at::Tensor(), norm->full().data, eps, offset);
    context->saved_data["norm"] = Pack(norm);
    context->saved_data["offset"] = offset;
    context->save_for_backward({x, result.rstd});
    return result.y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {NormBackward(Saved<Weight>(context, "norm"), context->saved_data.at("offset").toDouble(), saved[0],
                         saved[1], gradients[0].contiguous(), at::Tensor()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct NormLinearFunction : torch::autograd::Function<NormLinearFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const std::optional<at::Tensor>& optional_delta, Weight* norm, double eps,
                               Weight* linear, ProcessGroup* tensor, KeptResults* kept, const char* name, Weight* bias,
                               double offset) {
    const at::Tensor delta = optional_delta.value_or(at::Tensor());
    RmsNormResult result = RmsNorm(x, delta, norm->full().data, eps, offset);
    context->saved_data["bias"] = Pack(bias);
    context->saved_data["offset"] = offset;
    context->saved_data["norm"] = Pack(norm);
    context->saved_data["linear"] = Pack(linear);
    context->saved_data["tensor"] = Pack(tensor);
    context->saved_data["with_delta"] = delta.defined();
    context->set_materialize_grads(false);
    const variable_list product = TakeKept(kept, name, [&] {
      const Product made = MultiplyTransposed(*linear, GatherRows(*tensor, result.y), at::Tensor(), nullptr);
      if (bias != nullptr) made.y.add_(bias->full().data);
      return made.Pack();
    });
    const at::Tensor& y = product[0];
    variable_list saved = {result.h, result.rstd};
    saved.insert(saved.end(), product.begin() + 1, product.end());
    context->save_for_backward(saved);
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
    const double offset = context->saved_data.at("offset").toDouble();
    AddBiasGradient(SavedPointer<Weight>(context, "bias"), dy);

    Product forward;
    if (saved.size() > 2) forward = Product::Unpack(saved, /*first=*/1);
    const ProductGradient gradient(linear, forward, dy);
    // The input travels while d_normed is computed, and that while the weight's gradient is.
    const bool now = gradient.wants_input() && !gradient.deferred();
    PendingRows normed = now ? StartGatherRows(tensor, RmsNormAgain(h, rstd, norm_values, offset)) : PendingRows();
    PendingRows d_normed = StartReduceRows(tensor, gradient.InputGradient());
    if (now) {
      gradient.AddInputGradients([&] { return normed.Get(); });
    } else if (gradient.wants_input()) {
      gradient.AddInputGradients([h, rstd, offset, values = norm_values.clone(), &tensor] {
        return GatherRows(tensor, RmsNormAgain(h, rstd, values, offset));
      });
    }
    normed = PendingRows();
    const at::Tensor d_h = with_delta && gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    at::Tensor dx = NormBackward(norm, offset, h, rstd, d_normed.Get(), d_h);
    return {dx,           with_delta ? dx : at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

// x, or what a gate makes of it.
constexpr int64_t kNoGate = -1;
at::Tensor Input(const at::Tensor& x, int64_t gate) {
  return gate == kNoGate ? x : GatedForward(x, static_cast<Activation>(gate));
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::optional<at::Tensor>& optional_residual, Weight* weight, ProcessGroup* tensor,
                            Weight* bias, int64_t gate) {
    const at::Tensor residual = optional_residual.value_or(at::Tensor());
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["tensor"] = Pack(tensor);
    context->saved_data["gate"] = gate;
    context->saved_data["bias"] = Pack(bias);
    context->saved_data["residual"] = residual.defined();
    const bool alone = tensor->size() == 1;
    const Product product =
        MultiplyTransposed(*weight, Input(x, gate), alone ? residual : at::Tensor(), alone ? nullptr : tensor);
    variable_list saved = product.Pack();
    saved[0] = x;
    context->save_for_backward(saved);
    at::Tensor sum = product.y;
    if (!alone) {
      sum = ReduceRows(*tensor, sum);
      if (residual.defined()) AddInto(sum, residual);
    }
    if (bias != nullptr) sum.add_(bias->full().data);
    return sum;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    Weight& weight = Saved<Weight>(context, "weight");
    ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
    const int64_t gate = context->saved_data.at("gate").toInt();
    const at::Tensor d_part = gradients[0].contiguous();  // [t, N]
    AddBiasGradient(SavedPointer<Weight>(context, "bias"), d_part);
    const at::Tensor dy = GatherRows(tensor, d_part);
    const ProductGradient gradient(weight, Product::Unpack(saved, /*first=*/0), dy);
    const auto input = [x, gate] { return Input(x, gate); };
    const bool later = gradient.wants_input() && gradient.deferred();
    if (gradient.wants_input() && !later) gradient.AddInputGradients(input);
    at::Tensor dx;
    if (context->needs_input_grad(0)) {
      dx = gradient.InputGradient();
      // Gate and up are not read again, so their memory may take the gradient.
      if (gate != kNoGate) dx = GatedBackward(x, dx, static_cast<Activation>(gate), /*in_place=*/!later);
    }
    if (later) gradient.AddInputGradients(input);
    return {dx,           context->saved_data.at("residual").toBool() ? d_part : at::Tensor(),
            at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor Norm(const at::Tensor& x, Weight& norm, double eps, double offset) {
  return NormFunction::apply(x, &norm, eps, offset);
}

std::pair<at::Tensor, at::Tensor> NormLinear(const at::Tensor& x, const at::Tensor& delta, Weight& norm, double eps,
                                             Weight& linear, ProcessGroup& tensor, KeptResults* kept, const char* name,
                                             Weight* bias, double offset) {
  variable_list outputs =
      NormLinearFunction::apply(x, Present(delta), &norm, eps, &linear, &tensor, kept, name, bias, offset);
  return {delta.defined() ? outputs[1] : x, outputs[0]};
}

at::Tensor Linear(const at::Tensor& x, Weight& weight, ProcessGroup& tensor, const at::Tensor& residual, Weight* bias) {
  return LinearFunction::apply(x, Present(residual), &weight, &tensor, bias, kNoGate);
}

at::Tensor GatedLinear(const at::Tensor& gate_up, Activation activation, Weight& weight, ProcessGroup& tensor,
                       const at::Tensor& residual, Weight* bias) {
  return LinearFunction::apply(gate_up, Present(residual), &weight, &tensor, bias, static_cast<int64_t>(activation));
}

}  // namespace trireme
