// parallel/layers/adapter.h
// Low-rank adapters of linear layers: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), for every product with a
// weight that has one (Weight::adapter()). A fused group (q, k, v; gate, up) shares its input: the A of all its modules
// are stacked and multiplied as one matrix; each module has a B of its own.
//
// PiSSA (arXiv 2404.02948) begins with the principal part of W as adapter and the rest as base. Here the base stays W
// and the initial adapter is taken away beside it: W - s B0 A0 + s B A is the same, leaves the base as its file has it,
// and is what a plain adapter of twice the rank holds.
//
// Tensor parallelism needs no message of its own. Where the weight's rows are cut, A is replicated and B cut like them;
// where its columns are cut, A is cut like them and B replicated: x A^T B^T is then a part of a sum that the product
// takes over ranks anyway. Gradients of what is replicated are parts, which the parameter buffer sums.
#ifndef TRIREME_PARALLEL_LAYERS_ADAPTER_H_
#define TRIREME_PARALLEL_LAYERS_ADAPTER_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "kernels/base/dropout.h"
#include "kernels/base/weight.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// The adapter of one module.
struct AdapterMember {
  int64_t first_row = 0, rows = 0;   // of this rank's part of the weight: the module's
  int64_t first_rank = 0, rank = 0;  // rows of A: the module's, which several members may be parts of
  Weight* b = nullptr;               // [rows, rank]
  Weight* initial_b = nullptr;       // PiSSA: B as training began; null: nothing is taken away
  Weight* magnitude = nullptr;       // DoRA: [rows]; null: LoRA
  double scale = 1;
};

struct Adapter {
  Weight* a = nullptr;          // [sum of ranks, K]
  Weight* initial_a = nullptr;  // PiSSA: A as training began
  std::vector<AdapterMember> members;
  DropoutOptions dropout;  // of x on its way to A, the same for all members
  // The numbers of the product's rows, by which Dropout() draws; set before each forward pass. Undefined: nothing is
  // dropped.
  at::Tensor tokens;
};

// What a product leaves for its backward pass.
struct Product {
  at::Tensor y;               // [T, N]
  at::Tensor thin;            // [T, sum of ranks]: x A^T; undefined without adapter
  at::Tensor direction;       // DoRA: [T, N], y before each column got its magnitude
  at::Tensor inverse_length;  // DoRA: [N] arithmetic type, 1 / |row of W + s B A|; a constant to the gradient
  at::Tensor tokens;          // Adapter::tokens

  std::vector<at::Tensor> Pack() const;  // as autograd and kept results take them
  static Product Unpack(const std::vector<at::Tensor>& tensors, size_t first);
};

// x [T, K] -> x (W - s B0 A0 + s B A)^T (+ residual), with DoRA's columns scaled to their magnitudes; A sees x with
// elements dropped, W the whole. column_group: over which the weight's columns are cut; null: they are not. Collective
// over it with DoRA.
Product MultiplyTransposed(const Weight& weight, const at::Tensor& x, const at::Tensor& residual,
                           ProcessGroup* column_group);

// dy [T, N] on its way back through the product.
class ProductGradient {
 public:
  // Hands the gradients of B and magnitudes to them. forward.y is not looked at.
  ProductGradient(Weight& weight, const Product& forward, const at::Tensor& dy);

  // dx [T, K].
  at::Tensor InputGradient() const;

  // Whether AddInputGradients() has something to do.
  bool wants_input() const { return weight_.trainable() || weight_.adapter() != nullptr; }
  // True: tasks run later, so they should not hold the input but make it again.
  bool deferred() const;
  // Hands the gradients of W and A to them; `input` gives x [T, K], now or later.
  void AddInputGradients(std::function<at::Tensor()> input) const;

 private:
  Weight& weight_;
  at::Tensor dy_;      // of the product before magnitudes
  at::Tensor d_thin_;  // of x A^T; undefined without adapter
  at::Tensor tokens_;  // of x, where elements of it were dropped
};

// Rows of x as the adapter's A sees them: `tokens` numbers them where elements are dropped. Also what of a gradient
// behind A reaches x.
at::Tensor AdapterInput(const Adapter& adapter, const at::Tensor& x, const at::Tensor& tokens);

// The lengths of the rows of W + s B A, [rows] in the arithmetic type, for the rows that `member` has.
at::Tensor AdaptedRowLengths(const Weight& weight, const AdapterMember& member, ProcessGroup* column_group);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_ADAPTER_H_
