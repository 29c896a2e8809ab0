// Operations that stand alone: LayerNorm, a column-parallel product, an activation, learned positions.

#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "kernels/rows/activation.h"
#include "kernels/rows/layer_norm.h"
#include "launch/base/status.h"
#include "parallel/layers/adapter.h"
#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

// The values of a norm's weight with `offset` added; of none: ones.
at::Tensor NormValues(const Weight* weight, double offset, const at::Tensor& x) {
  if (weight == nullptr) return at::ones({x.size(1)}, x.options());
  const at::Tensor values = weight->full().data;
  return offset == 0 ? values : values + offset;
}

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* weight, Weight* bias, double eps,
                            double offset) {
    const at::Tensor added = bias != nullptr ? bias->full().data : at::zeros({x.size(1)}, x.options());
    const LayerNormResult result = LayerNormForward(x, NormValues(weight, offset, x), added, eps);
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["bias"] = Pack(bias);
    context->saved_data["offset"] = offset;
    context->save_for_backward({x, result.mean, result.rstd});
    return result.y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    Weight *weight = SavedPointer<Weight>(context, "weight"), *bias = SavedPointer<Weight>(context, "bias");
    const auto trainable = [](const Weight* one) { return one != nullptr && one->trainable(); };
    const at::Tensor values = NormValues(weight, context->saved_data.at("offset").toDouble(), saved[0]);
    at::Tensor d_weight = at::zeros(values.sizes(), saved[1].options()),
               d_bias = at::zeros(values.sizes(), saved[1].options());
    at::Tensor dx = LayerNormBackward(saved[0], saved[1], saved[2], values, gradients[0].contiguous(),
                                      trainable(weight) ? &d_weight : nullptr, trainable(bias) ? &d_bias : nullptr);
    if (trainable(weight)) AddVectorGradient(*weight, d_weight);
    if (trainable(bias)) AddVectorGradient(*bias, d_bias);
    return {dx, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct ColumnLinearFunction : torch::autograd::Function<ColumnLinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* weight, Weight* bias,
                            ProcessGroup* tensor, KeptResults* kept, const char* name) {
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["bias"] = Pack(bias);
    context->saved_data["tensor"] = Pack(tensor);
    variable_list product = TakeKept(kept, name, [&] {
      const Product made = MultiplyTransposed(*weight, GatherRows(*tensor, x), at::Tensor(), nullptr);
      if (bias != nullptr) made.y.add_(bias->full().data);
      return made.Pack();
    });
    const at::Tensor y = std::exchange(product[0], x);
    context->save_for_backward(product);
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
    const at::Tensor dy = gradients[0].contiguous();  // [T, N/n]
    AddBiasGradient(SavedPointer<Weight>(context, "bias"), dy);
    const ProductGradient gradient(Saved<Weight>(context, "weight"), Product::Unpack(saved, /*first=*/0), dy);
    // The input travels while dx is computed, and that while the weight's gradient is.
    const bool now = gradient.wants_input() && !gradient.deferred();
    PendingRows input = now ? StartGatherRows(tensor, x) : PendingRows();
    PendingRows dx = StartReduceRows(tensor, gradient.InputGradient());
    if (now) {
      gradient.AddInputGradients([&] { return input.Get(); });
    } else if (gradient.wants_input()) {
      gradient.AddInputGradients([x, &tensor] { return GatherRows(tensor, x); });
    }
    return {dx.Get(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct ActivationFunction : torch::autograd::Function<ActivationFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, int64_t activation) {
    context->saved_data["activation"] = activation;
    context->save_for_backward({x});
    return ActivationForward(x, static_cast<Activation>(activation));
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto activation = static_cast<Activation>(context->saved_data.at("activation").toInt());
    return {ActivationBackward(context->get_saved_variables()[0], gradients[0].contiguous(), activation), at::Tensor()};
  }
};

// An xIELU's numbers as scalars on the device, in the arithmetic type.
struct XieluNumbers {
  at::Tensor p, n, beta, eps;
  XieluNumbers(const XieluWeights& w, at::ScalarType type) {
    const auto values = [&](const Weight& weight) { return weight.full().data.to(type); };
    beta = values(*w.beta);
    eps = values(*w.eps);
    p = at::softplus(values(*w.alpha_p));
    n = beta + at::softplus(values(*w.alpha_n));
  }
};

struct XieluFunction : torch::autograd::Function<XieluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& given, const XieluWeights& w) {
    context->saved_data["alpha_p"] = Pack(w.alpha_p);
    context->saved_data["alpha_n"] = Pack(w.alpha_n);
    context->saved_data["beta"] = Pack(w.beta);
    context->saved_data["eps"] = Pack(w.eps);
    context->save_for_backward({given});
    const at::Tensor x = given.to(ArithmeticType(given.scalar_type()));
    const XieluNumbers v(w, x.scalar_type());
    const at::Tensor negative = (at::expm1(at::minimum(x, v.eps)) - x) * v.n;
    return (at::where(x.gt(0), v.p * x * x, negative) + v.beta * x).to(given.scalar_type());
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const XieluWeights w = {SavedPointer<Weight>(context, "alpha_p"), SavedPointer<Weight>(context, "alpha_n"),
                            SavedPointer<Weight>(context, "beta"), SavedPointer<Weight>(context, "eps")};
    const at::Tensor given = context->get_saved_variables()[0];
    const at::ScalarType type = ArithmeticType(given.scalar_type());
    const at::Tensor x = given.to(type), dy = gradients[0].to(type), zero = at::zeros({}, x.options());
    const XieluNumbers v(w, type);
    const at::Tensor positive = x.gt(0);
    const auto learn = [&](Weight& weight, const at::Tensor& slope) {
      if (!weight.trainable()) return;
      // One number gets the sum over all elements, most of which cancel.
      AddVectorGradient(weight,
                        (slope.sum(at::kDouble).to(type) * at::sigmoid(weight.full().data.to(type))).reshape({1}));
    };
    learn(*w.alpha_p, at::where(positive, dy * x * x, zero));
    learn(*w.alpha_n, at::where(positive, zero, dy * (at::expm1(at::minimum(x, v.eps)) - x)));
    const at::Tensor negative = v.n * (at::where(x.lt(v.eps), at::exp(x), zero) - 1);
    const at::Tensor dx = dy * (at::where(positive, 2 * v.p * x, negative) + v.beta);
    return {dx.to(given.scalar_type()), at::Tensor()};
  }
};

// On CPUs here, so that the message names what is wrong; on GPUs the gather of rows checks.
void CheckPositions(const at::Tensor& positions, int64_t rows) {
  if (positions.is_cuda()) return;
  const int64_t* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < positions.numel(); ++i) {
    TRIREME_CHECK(position[i] >= 0 && position[i] < rows, "position ", position[i], " outside the position table's ",
                  rows, " rows");
  }
}

struct AddPositionsFunction : torch::autograd::Function<AddPositionsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& positions, Weight* table) {
    context->saved_data["table"] = Pack(table);
    context->save_for_backward({positions});
    CheckPositions(positions, table->full().data.size(0));
    return x + EmbeddingForward(positions, table->full().data);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    Weight& table = Saved<Weight>(context, "table");
    if (table.trainable()) {
      table.AddGradient([positions = context->get_saved_variables()[0], dy = gradients[0].contiguous()](
                            at::Tensor& accumulator, bool overwrite) {
        if (overwrite) accumulator.zero_();
        AddEmbeddingGradient(positions, dy, accumulator);
      });
    }
    return {gradients[0], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor LayerNorm(const at::Tensor& x, Weight* weight, Weight* bias, double eps, double offset) {
  return LayerNormFunction::apply(x, weight, bias, eps, offset);
}

at::Tensor ColumnLinear(const at::Tensor& x, Weight& weight, Weight* bias, ProcessGroup& tensor, KeptResults* kept,
                        const char* name) {
  return ColumnLinearFunction::apply(x, &weight, bias, &tensor, kept, name);
}

at::Tensor Activate(const at::Tensor& x, Activation activation) {
  return ActivationFunction::apply(x, static_cast<int64_t>(activation));
}

at::Tensor Xielu(const at::Tensor& x, const XieluWeights& weights) { return XieluFunction::apply(x, weights); }

at::Tensor AddPositions(const at::Tensor& x, const at::Tensor& positions, Weight& table, ProcessGroup& tensor) {
  const int64_t rows = x.size(0);
  return AddPositionsFunction::apply(x, positions.narrow(0, tensor.rank() * rows, rows).contiguous(), &table);
}

}  // namespace trireme
