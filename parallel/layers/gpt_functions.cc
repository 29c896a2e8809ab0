#include "parallel/layers/gpt_functions.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "kernels/rows/layer_norm.h"
#include "launch/base/status.h"
#include "parallel/layers/adapter.h"
#include "parallel/layers/autograd.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* weight, Weight* bias, double eps) {
    const LayerNormResult result = LayerNormForward(x, weight->full().data, bias->full().data, eps);
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["bias"] = Pack(bias);
    context->save_for_backward({x, result.mean, result.rstd});
    return result.y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    Weight &weight = Saved<Weight>(context, "weight"), &bias = Saved<Weight>(context, "bias");
    const at::Tensor values = weight.full().data;
    at::Tensor d_weight = at::zeros(values.sizes(), saved[1].options()),
               d_bias = at::zeros(values.sizes(), saved[1].options());
    at::Tensor dx = LayerNormBackward(saved[0], saved[1], saved[2], values, gradients[0].contiguous(),
                                      weight.trainable() ? &d_weight : nullptr, bias.trainable() ? &d_bias : nullptr);
    if (weight.trainable()) AddVectorGradient(weight, d_weight);
    if (bias.trainable()) AddVectorGradient(bias, d_bias);
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
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

struct GeluFunction : torch::autograd::Function<GeluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, int64_t kind) {
    context->saved_data["kind"] = kind;
    context->save_for_backward({x});
    return GeluForward(x, static_cast<Gelu>(kind));
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto kind = static_cast<Gelu>(context->saved_data.at("kind").toInt());
    return {GeluBackward(context->get_saved_variables()[0], gradients[0].contiguous(), kind), at::Tensor()};
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

at::Tensor LayerNorm(const at::Tensor& x, Weight& weight, Weight& bias, double eps) {
  return LayerNormFunction::apply(x, &weight, &bias, eps);
}

at::Tensor ColumnLinear(const at::Tensor& x, Weight& weight, Weight* bias, ProcessGroup& tensor, KeptResults* kept,
                        const char* name) {
  return ColumnLinearFunction::apply(x, &weight, bias, &tensor, kept, name);
}

at::Tensor ApplyGelu(const at::Tensor& x, Gelu kind) { return GeluFunction::apply(x, static_cast<int64_t>(kind)); }

at::Tensor AddPositions(const at::Tensor& x, const at::Tensor& positions, Weight& table, ProcessGroup& tensor) {
  const int64_t rows = x.size(0);
  return AddPositionsFunction::apply(x, positions.narrow(0, tensor.rank() * rows, rows).contiguous(), &table);
}

}  // namespace trireme
