// kernels/base/weight.h
// What an operation may know of a parameter: its values for the moment, and where its gradient goes. Parameters are not
// autograd leaves.
#ifndef TRIREME_KERNELS_BASE_WEIGHT_H_
#define TRIREME_KERNELS_BASE_WEIGHT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace trireme {

// The whole parameter as this rank's operation needs it. Only kernels/matmul.h looks inside forms other than plain
// values.
struct Gathered {
  at::Tensor data;        // [rows, columns] or [width], compute dtype: the part that this tensor rank multiplies with
  int64_t first_row = 0;  // of `data` in the whole parameter, where rows are a vocabulary
};

// Adds one contribution into the gradient accumulator (fp32, or fp64 for fp64 weights), shaped as Gathered::data.
// overwrite: the accumulator holds nothing yet, so the task sets it.
using GradientTask = std::function<void(at::Tensor& accumulator, bool overwrite)>;

struct Adapter;  // parallel/layers/adapter.h

class Weight {
 public:
  virtual ~Weight() = default;

  // What is trained beside it: products with this weight add it. Null: nothing.
  const Adapter* adapter() const { return adapter_; }
  void set_adapter(const Adapter* adapter) { adapter_ = adapter; }

  // Valid until the operation returns; no operation saves it for backward, it asks again.
  virtual Gathered full() const = 0;

  // Whole matrices that stand in it one under another: rows [first, first + count) of full().data, valid likewise. Of a
  // quantized weight nothing else is dequantized.
  virtual at::Tensor Rows(int64_t first, int64_t count) const { return full().data.narrow(0, first, count); }
  // False: values are made when they are asked for, so that Rows() of what is at work is better than full().
  virtual bool at_hand() const { return true; }

  // False: AddGradient must not be called.
  virtual bool trainable() const = 0;

  // The gradient sink: runs `task` once, now or later (the weight of a loss head: now, since the task also makes the
  // gradient of the head's input). The task may keep what it needs alive. Each call is one contribution.
  virtual void AddGradient(GradientTask task) = 0;

  // Whether tasks given now run later: they should then hold little.
  virtual bool gradient_deferred() const { return false; }

 private:
  const Adapter* adapter_ = nullptr;
};

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_WEIGHT_H_
