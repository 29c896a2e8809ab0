// parallel/layers/autograd.h
// What the autograd functions of this folder share. Included by its .cc files only.
#ifndef TRIREME_PARALLEL_LAYERS_AUTOGRAD_H_
#define TRIREME_PARALLEL_LAYERS_AUTOGRAD_H_

#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "kernels/base/ops.h"
#include "kernels/base/weight.h"

namespace trireme {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Objects that outlive the graph, saved by address.
inline c10::IValue Pack(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(pointer)); }
template <typename T>
T* SavedPointer(const AutogradContext* context, const char* key) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(context->saved_data.at(key).toInt()));
}
template <typename T>
T& Saved(const AutogradContext* context, const char* key) {
  return *SavedPointer<T>(context, key);
}

// Autograd takes optional inputs, not undefined ones.
inline std::optional<at::Tensor> Present(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// Hands the gradient of a vector (a norm's weight, a bias) to it.
inline void AddVectorGradient(Weight& weight, const at::Tensor& gradient) {
  weight.AddGradient([gradient](at::Tensor& accumulator, bool overwrite) {
    overwrite ? CopyConverted(gradient, accumulator) : AddInto(accumulator, gradient);
  });
}

// Hands the gradient of a bias, which was added to every row, to it; null: there is none.
inline void AddBiasGradient(Weight* bias, const at::Tensor& dy) {
  if (bias == nullptr || !bias->trainable()) return;
  AddVectorGradient(*bias, at::sum(dy, {0}, /*keepdim=*/false, ArithmeticType(dy.scalar_type())));
}

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_AUTOGRAD_H_
