#include "parallel/layers/adapter.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "kernels/base/ops.h"
#include "parallel/layers/autograd.h"

namespace trireme {
namespace {

bool HasMagnitudes(const Adapter& adapter) { return adapter.members.front().magnitude != nullptr; }

at::Tensor Columns(const at::Tensor& matrix, const AdapterMember& member) {
  return matrix.narrow(1, member.first_row, member.rows);
}

// A member's part of the gradient of x A^T: members of one module add to the same columns.
void SetOrAdd(const at::Tensor& d_thin, const Adapter& adapter, const AdapterMember& member, const at::Tensor& part) {
  at::Tensor columns = d_thin.narrow(1, member.first_rank, member.rank);
  const auto first = std::find_if(adapter.members.begin(), adapter.members.end(),
                                  [&](const AdapterMember& other) { return other.first_rank == member.first_rank; });
  &*first == &member ? columns.copy_(part) : columns.add_(part);
}

}  // namespace

std::vector<at::Tensor> Product::Pack() const {
  std::vector<at::Tensor> tensors = {y};
  if (thin.defined()) tensors.push_back(thin);
  if (direction.defined()) {
    tensors.push_back(direction);
    tensors.push_back(inverse_length);
  }
  if (tokens.defined()) tensors.push_back(tokens);
  return tensors;
}

Product Product::Unpack(const std::vector<at::Tensor>& tensors, size_t first) {
  Product product;
  at::Tensor* fields[] = {&product.y, &product.thin, &product.direction, &product.inverse_length};
  size_t count = tensors.size() - first;
  // Without tokens there are one, two or four.
  if (count == 3 || count == 5) product.tokens = tensors[first + --count];
  for (size_t i = 0; i < count; ++i) *fields[i] = tensors[first + i];
  return product;
}

at::Tensor AdapterInput(const Adapter& adapter, const at::Tensor& x, const at::Tensor& tokens) {
  return tokens.defined() ? Dropout(x, tokens, adapter.dropout) : x;
}

at::Tensor AdaptedRowLengths(const Weight& weight, const AdapterMember& member, ProcessGroup* column_group) {
  // |w + s b A|^2 = |w|^2 + 2 s b . (w A^T) + s^2 b A A^T b^T: W + s B A is never made.
  const at::Tensor w = weight.full().data.narrow(0, member.first_row, member.rows);
  const at::ScalarType type = ArithmeticType(w.scalar_type());
  const at::Tensor a = weight.adapter()->a->full().data.narrow(0, member.first_rank, member.rank).to(type);
  const at::Tensor b = member.b->full().data.to(type);
  at::Tensor squares = at::linalg_vector_norm(w, 2, at::IntArrayRef{1}, /*keepdim=*/false, type).square();
  const at::Tensor cross =
      at::mm(w.to(type), a.t()) * (2 * member.scale) + at::mm(b, at::mm(a, a.t())) * (member.scale * member.scale);
  squares += at::sum(cross * b, {1});
  if (column_group != nullptr) column_group->AllReduce(squares, ReduceOp::kSum).Wait();
  return squares.sqrt_();
}

Product MultiplyTransposed(const Weight& weight, const at::Tensor& x, const at::Tensor& residual,
                           ProcessGroup* column_group) {
  Product product;
  const Adapter* adapter = weight.adapter();
  if (adapter == nullptr) {
    product.y = MatmulTransposed(x, weight.full().data, residual);
    return product;
  }
  const bool magnitudes = HasMagnitudes(*adapter);
  product.tokens = adapter->tokens;
  product.thin = MatmulTransposed(AdapterInput(*adapter, x, product.tokens), adapter->a->full().data);
  product.y = MatmulTransposed(x, weight.full().data, magnitudes ? at::Tensor() : residual);
  for (const AdapterMember& member : adapter->members) {
    const at::Tensor thin = product.thin.narrow(1, member.first_rank, member.rank) * member.scale;
    AddMatmulTransposed(Columns(product.y, member), thin, member.b->full().data);
  }
  if (adapter->initial_a != nullptr) {
    const at::Tensor initial = MatmulTransposed(x, adapter->initial_a->full().data);
    for (const AdapterMember& member : adapter->members) {
      const at::Tensor thin = initial.narrow(1, member.first_rank, member.rank) * -member.scale;
      AddMatmulTransposed(Columns(product.y, member), thin, member.initial_b->full().data);
    }
  }
  if (!magnitudes) return product;
  product.direction = product.y.clone();
  product.inverse_length = at::zeros({product.y.size(1)}, x.options().dtype(ArithmeticType(x.scalar_type())));
  for (const AdapterMember& member : adapter->members) {
    const at::Tensor inverse = AdaptedRowLengths(weight, member, column_group).reciprocal_();
    product.inverse_length.narrow(0, member.first_row, member.rows).copy_(inverse);
    Columns(product.y, member).mul_((inverse * member.magnitude->full().data).to(x.scalar_type()));
  }
  if (residual.defined()) AddInto(product.y, residual);
  return product;
}

ProductGradient::ProductGradient(Weight& weight, const Product& forward, const at::Tensor& dy)
    : weight_(weight), dy_(dy) {
  const Adapter* adapter = weight.adapter();
  if (adapter == nullptr) return;
  if (HasMagnitudes(*adapter)) {
    const at::Tensor products = dy * forward.direction;
    dy_ = dy.clone();
    for (const AdapterMember& member : adapter->members) {
      const at::Tensor inverse = forward.inverse_length.narrow(0, member.first_row, member.rows);
      const at::Tensor sums = at::sum(Columns(products, member), {0}, /*keepdim=*/false, inverse.scalar_type());
      AddVectorGradient(*member.magnitude, sums * inverse);
      Columns(dy_, member).mul_((inverse * member.magnitude->full().data).to(dy.scalar_type()));
    }
  }
  tokens_ = forward.tokens;
  d_thin_ = at::empty(forward.thin.sizes(), forward.thin.options());
  for (const AdapterMember& member : adapter->members) {
    const at::Tensor part = Columns(dy_, member);
    SetOrAdd(d_thin_, *adapter, member, Matmul(part, member.b->full().data) * member.scale);
    member.b->AddGradient(
        [part, thin = forward.thin.narrow(1, member.first_rank, member.rank) * member.scale](
            at::Tensor& accumulator, bool overwrite) { AddOuterProduct(part, thin, accumulator, overwrite); });
  }
}

at::Tensor ProductGradient::InputGradient() const {
  at::Tensor dx = Matmul(dy_, weight_.full().data);
  if (!d_thin_.defined()) return dx;
  const Adapter& adapter = *weight_.adapter();
  if (tokens_.defined()) {
    AddInto(dx, AdapterInput(adapter, Matmul(d_thin_, adapter.a->full().data), tokens_));
  } else {
    AddMatmul(dx, d_thin_, adapter.a->full().data);
  }
  if (adapter.initial_a == nullptr) return dx;
  const at::Tensor d_initial = at::empty(d_thin_.sizes(), d_thin_.options());
  for (const AdapterMember& member : adapter.members) {
    const at::Tensor d_part = Matmul(Columns(dy_, member), member.initial_b->full().data);
    SetOrAdd(d_initial, adapter, member, d_part * -member.scale);
  }
  AddMatmul(dx, d_initial, adapter.initial_a->full().data);
  return dx;
}

bool ProductGradient::deferred() const {
  return weight_.trainable() ? weight_.gradient_deferred()
                             : weight_.adapter() != nullptr && weight_.adapter()->a->gradient_deferred();
}

void ProductGradient::AddInputGradients(std::function<at::Tensor()> input) const {
  const auto hand = [&input](Weight& weight, const at::Tensor& d_out) {
    weight.AddGradient([d_out, input](at::Tensor& accumulator, bool overwrite) {
      AddOuterProduct(d_out, input(), accumulator, overwrite);
    });
  };
  if (weight_.trainable()) hand(weight_, dy_);
  if (!d_thin_.defined()) return;
  const Adapter* adapter = weight_.adapter();
  if (tokens_.defined()) {
    input = [input, tokens = tokens_, adapter] { return AdapterInput(*adapter, input(), tokens); };
  }
  hand(*adapter->a, d_thin_);
}

}  // namespace trireme
