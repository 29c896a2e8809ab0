#include "tests/kernels/reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/bucketize.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/erfc.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>

#include <cmath>

namespace trireme::reference {

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt(x.pow(2).mean(-1, /*keepdim=*/true) + eps) * weight;
}

at::Tensor LayerNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const at::Tensor centered = x - x.mean(-1, /*keepdim=*/true);
  return centered * at::rsqrt(centered.pow(2).mean(-1, /*keepdim=*/true) + eps) * weight + bias;
}

at::Tensor Activated(const at::Tensor& x, Activation activation) {
  if (activation == Activation::kSilu) return at::silu(x);
  if (activation == Activation::kRelu) return at::relu(x);
  if (activation == Activation::kSquaredRelu) return at::relu(x).pow(2);
  // Without the cancellation far below zero: (1 + erf(y)) / 2 = erfc(-y) / 2, (1 + tanh(u)) / 2 = sigmoid(2u).
  if (activation == Activation::kGelu) return x * at::erfc(x * -M_SQRT1_2) / 2;
  return x * at::sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x.pow(3)));
}

at::Tensor Gated(const at::Tensor& gate_up, Activation activation) {
  const std::vector<at::Tensor> halves = gate_up.chunk(2, 1);
  const at::Tensor& gate = halves[0];
  if (activation == Activation::kSilu) return at::silu(gate) * halves[1];
  // g (1 + tanh(u)) / 2 without its cancellation far below zero.
  const at::Tensor u = std::sqrt(2 / M_PI) * (gate + 0.044715 * gate.pow(3));
  return gate * at::sigmoid(2 * u) * halves[1];
}

at::Tensor Rope(const at::Tensor& heads, const at::Tensor& positions, const RopeTable& table) {
  const int64_t turning = 2 * table.cosine.size(1);
  const auto rows = [&](const at::Tensor& half) {  // [T, 1, pairs]
    return half.to(at::kDouble).index_select(0, positions).unsqueeze(1);
  };
  const at::Tensor c = rows(table.cosine), s = rows(table.sine), turned = heads.narrow(2, 0, turning),
                   still = heads.narrow(2, turning, heads.size(2) - turning);
  if (table.interleaved) {
    const at::Tensor pairs = turned.unflatten(2, {-1, 2}), a = pairs.select(3, 0), b = pairs.select(3, 1);
    return at::cat({at::stack({a * c - b * s, b * c + a * s}, 3).flatten(2), still}, 2);
  }
  const std::vector<at::Tensor> halves = turned.chunk(2, 2);
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s, still}, 2);
}

HeadSums LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets) {
  const at::Tensor logits = at::matmul(x, weight.t());
  constexpr int64_t kIgnored = -1;
  const at::Tensor counted = targets.ge(0).to(at::kDouble);
  return {at::cross_entropy_loss(logits, targets.clamp_min(kIgnored), {}, at::Reduction::Sum, kIgnored),
          (at::logsumexp(logits, 1).pow(2) * counted).sum()};
}

namespace {

at::Tensor Nf4Codes() {
  return at::from_blob(const_cast<float*>(kNf4Codes), {16}, at::TensorOptions().dtype(at::kFloat)).clone();
}

}  // namespace

Nf4 QuantizeNf4(const at::Tensor& x) {
  const at::Tensor blocks = x.to(at::kFloat).view({-1, kNf4Block});
  Nf4 nf4;
  nf4.absmax = blocks.abs().amax(1);
  const at::Tensor scaled = at::clamp(blocks * (1.0 / at::clamp_min(nf4.absmax, 1e-38)).view({-1, 1}), -1, 1);
  const at::Tensor codes = Nf4Codes();
  nf4.codes = at::bucketize(scaled, (codes.narrow(0, 0, 15) + codes.narrow(0, 1, 15)) / 2).view({-1}).to(at::kByte);
  return nf4;
}

at::Tensor DequantizeNf4(const Nf4& nf4) {
  return (Nf4Codes().index_select(0, nf4.codes.to(at::kLong)).view({-1, kNf4Block}) * nf4.absmax.view({-1, 1}))
      .view({-1});
}

}  // namespace trireme::reference
