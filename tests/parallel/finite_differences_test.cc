// Every differentiable operation against central differences in float64: activations and weights, each element.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "parallel/comm/mpi_group.h"
#include "parallel/layers/adapter.h"
#include "parallel/layers/functions.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

// A weight that is a tensor, with its gradient accumulator beside it.
class TensorWeight final : public Weight {
 public:
  explicit TensorWeight(at::Tensor values, bool trainable = true)
      : values_(std::move(values)), gradient_(at::zeros_like(values_)), trainable_(trainable) {}
  Gathered full() const override { return {values_}; }
  bool trainable() const override { return trainable_; }
  void AddGradient(GradientTask task) override {
    ASSERT_TRUE(trainable_) << "a frozen weight was given a gradient";
    ++contributions;
    task(gradient_, /*overwrite=*/false);
  }
  const at::Tensor& values() const { return values_; }
  const at::Tensor& gradient() const { return gradient_; }
  int contributions = 0;

 private:
  at::Tensor values_, gradient_;
  bool trainable_;
};

class FiniteDifferences : public testing::Test {
 protected:
  at::Tensor Input(at::IntArrayRef sizes) { return random_.Normal(sizes, at::kDouble).requires_grad_(); }
  TensorWeight Parameter(at::IntArrayRef sizes, bool trainable = true) {
    return TensorWeight(random_.Normal(sizes, at::kDouble), trainable);
  }
  at::Tensor Anchor() { return at::zeros({0}, at::TensorOptions().dtype(at::kDouble)).requires_grad_(); }

  // The derivative of value() by each element of `values` against `gradient`.
  void ExpectDerivative(const char* name, const std::function<double()>& value, const at::Tensor& values,
                        const at::Tensor& gradient) {
    ASSERT_TRUE(gradient.defined()) << name;
    const at::Tensor analytic = gradient.contiguous();
    double* x = static_cast<double*>(values.data_ptr());
    constexpr double kStep = 1e-5;
    at::AutoGradMode no_grad(false);
    at::Tensor numeric = at::zeros_like(analytic);
    for (int64_t i = 0; i < values.numel(); ++i) {
      const double kept = x[i];
      x[i] = kept + kStep;
      const double above = value();
      x[i] = kept - kStep;
      const double below = value();
      x[i] = kept;
      numeric.mutable_data_ptr<double>()[i] = (above - below) / (2 * kStep);
    }
    EXPECT_GT(numeric.abs().max().item<double>(), 1e-3) << name << " does not reach the loss";
    EXPECT_LT(RelativeError(analytic, numeric), 1e-7) << name;
  }

  // A loss that weighs every output element differently.
  at::Tensor Weigh(const at::Tensor& y) {
    TestTensors fixed(99);
    return (y * fixed.Normal(y.sizes(), at::kDouble)).sum();
  }

  // `loss` as a function of inputs and weights; runs backward once and compares everything.
  void Check(const std::function<at::Tensor()>& loss, const std::vector<at::Tensor>& inputs,
             const std::vector<TensorWeight*>& weights) {
    torch::autograd::backward({loss()}, {});
    const auto value = [&] { return loss().item<double>(); };
    for (size_t i = 0; i < inputs.size(); ++i) {
      ExpectDerivative(absl::StrCat("input ", i).c_str(), value, inputs[i], inputs[i].grad());
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      EXPECT_EQ(weights[i]->contributions, weights[i]->trainable() ? 1 : 0) << "weight " << i;
      if (weights[i]->trainable())
        ExpectDerivative(absl::StrCat("weight ", i).c_str(), value, weights[i]->values(), weights[i]->gradient());
    }
  }

  TestTensors random_{5};
  const std::shared_ptr<ProcessGroup> alone_ = MakeSelfGroup("alone");
};

TEST_F(FiniteDifferences, Embedding) {
  TensorWeight table = Parameter({7, 5});
  const at::Tensor tokens = TensorOf<int64_t>({3, 0, 3, 6, 3}), anchor = Anchor();  // A repeated token adds up.
  Check([&] { return Weigh(Embedding(tokens, table, *alone_, anchor)); }, {}, {&table});
}

TEST_F(FiniteDifferences, FrozenEmbeddingGetsNoGradient) {
  TensorWeight table = Parameter({7, 5}, /*trainable=*/false);
  const at::Tensor anchor = Anchor();
  torch::autograd::backward({Weigh(Embedding(TensorOf<int64_t>({1, 2}), table, *alone_, anchor))}, {});
  EXPECT_EQ(table.contributions, 0);
}

TEST_F(FiniteDifferences, Norm) {
  const at::Tensor x = Input({4, 9});
  TensorWeight norm = Parameter({9});
  Check([&] { return Weigh(Norm(x, norm, 1e-3)); }, {x}, {&norm});
}

TEST_F(FiniteDifferences, NormLinear) {
  const at::Tensor x = Input({4, 6});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6});
  Check([&] { return Weigh(NormLinear(x, at::Tensor(), norm, 1e-3, linear, *alone_).second); }, {x}, {&norm, &linear});
}

TEST_F(FiniteDifferences, NormLinearReturnsItsInputWithoutDelta) {
  const at::Tensor x = Input({4, 6});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6});
  const auto loss = [&] {
    const auto [h, y] = NormLinear(x, at::Tensor(), norm, 1e-3, linear, *alone_);
    return Weigh(y) + Weigh(h).pow(2);
  };
  Check(loss, {x}, {&norm, &linear});
}

TEST_F(FiniteDifferences, NormLinearWithDeltaUsingBothOutputs) {
  const at::Tensor x = Input({4, 6}), delta = Input({4, 6});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6});
  const auto loss = [&] {
    const auto [h, y] = NormLinear(x, delta, norm, 1e-3, linear, *alone_);
    return Weigh(y) + Weigh(h).pow(2);
  };
  Check(loss, {x, delta}, {&norm, &linear});
}

TEST_F(FiniteDifferences, NormLinearWithDeltaUsingTheProductOnly) {
  const at::Tensor x = Input({4, 6}), delta = Input({4, 6});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6});
  Check([&] { return Weigh(NormLinear(x, delta, norm, 1e-3, linear, *alone_).second); }, {x, delta}, {&norm, &linear});
}

TEST_F(FiniteDifferences, FrozenNormAndLinearStillPassGradients) {
  const at::Tensor x = Input({4, 6});
  TensorWeight norm = Parameter({6}, false), linear = Parameter({5, 6}, false);
  Check([&] { return Weigh(NormLinear(x, at::Tensor(), norm, 1e-3, linear, *alone_).second); }, {x}, {&norm, &linear});
}

TEST_F(FiniteDifferences, Linear) {
  const at::Tensor x = Input({3, 6}), residual = Input({3, 4});
  TensorWeight weight = Parameter({4, 6}), again = Parameter({4, 6});
  Check([&] { return Weigh(Linear(x, weight, *alone_)); }, {x}, {&weight});
  x.mutable_grad().reset();
  Check([&] { return Weigh(Linear(x, again, *alone_, residual)); }, {x, residual}, {&again});
}

TEST_F(FiniteDifferences, GatedLinear) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    const at::Tensor gate_up = Input({3, 10}), residual = Input({3, 4});
    TensorWeight weight = Parameter({4, 5}), again = Parameter({4, 5});
    // Backward writes over its input: it gets a copy.
    Check([&] { return Weigh(GatedLinear(gate_up.clone(), activation, weight, *alone_)); }, {gate_up}, {&weight});
    gate_up.mutable_grad().reset();
    Check([&] { return Weigh(GatedLinear(gate_up.clone(), activation, again, *alone_, residual)); },
          {gate_up, residual}, {&again});
  }
}

TEST_F(FiniteDifferences, Biases) {
  const at::Tensor x = Input({4, 6}), residual = Input({4, 5});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6}), bias = Parameter({5}), output = Parameter({5, 6}),
               output_bias = Parameter({5});
  const auto loss = [&] {
    return Weigh(NormLinear(x, at::Tensor(), norm, 1e-3, linear, *alone_, nullptr, nullptr, &bias).second) +
           Weigh(Linear(x, output, *alone_, residual, &output_bias)).pow(2);
  };
  Check(loss, {x, residual}, {&norm, &linear, &bias, &output, &output_bias});
}

TEST_F(FiniteDifferences, NormsWithOffset) {
  const at::Tensor x = Input({4, 6}), delta = Input({4, 6});
  TensorWeight norm = Parameter({6}), linear = Parameter({5, 6}), post = Parameter({6});
  const auto loss = [&] {
    const at::Tensor h = x + Norm(delta, post, 1e-3, 1);
    return Weigh(NormLinear(h, at::Tensor(), norm, 1e-3, linear, *alone_, nullptr, nullptr, nullptr, 1).second) +
           Weigh(h).pow(2);
  };
  Check(loss, {x, delta}, {&norm, &linear, &post});
}

TEST_F(FiniteDifferences, LayerNorm) {
  const at::Tensor x = Input({4, 9});
  TensorWeight weight = Parameter({9}), bias = Parameter({9});
  Check([&] { return Weigh(LayerNorm(x, &weight, &bias, 1e-3)); }, {x}, {&weight, &bias});
  x.mutable_grad().reset();
  TensorWeight frozen = Parameter({9}, false), frozen_bias = Parameter({9}, false);
  Check([&] { return Weigh(LayerNorm(x, &frozen, &frozen_bias, 1e-3)); }, {x}, {&frozen, &frozen_bias});
  x.mutable_grad().reset();
  TensorWeight from_one = Parameter({9});
  Check([&] { return Weigh(LayerNorm(x, &from_one, nullptr, 1e-3, /*offset=*/1)); }, {x}, {&from_one});
  x.mutable_grad().reset();
  Check([&] { return Weigh(LayerNorm(x, nullptr, nullptr, 1e-3)); }, {x}, {});
}

TEST_F(FiniteDifferences, ColumnLinear) {
  const at::Tensor x = Input({4, 6});
  for (const bool trainable : {true, false}) {
    TensorWeight weight = Parameter({5, 6}, trainable), bias = Parameter({5}, trainable), bare = Parameter({5, 6});
    const auto loss = [&] {
      return Weigh(ColumnLinear(x, weight, &bias, *alone_, nullptr, nullptr)) +
             Weigh(ColumnLinear(x, bare, nullptr, *alone_, nullptr, nullptr)).pow(2);
    };
    x.mutable_grad().reset();
    Check(loss, {x}, {&weight, &bias, &bare});
  }
}

TEST_F(FiniteDifferences, Activations) {
  for (const Activation kind :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu, Activation::kSquaredRelu}) {
    const at::Tensor x = Input({4, 6});
    Check([&] { return Weigh(Activate(x, kind)); }, {x}, {});
  }
}

TEST_F(FiniteDifferences, LearnedPositions) {
  const at::Tensor x = Input({5, 6}), positions = TensorOf<int64_t>({0, 1, 2, 0, 1});  // Two segments share rows.
  TensorWeight table = Parameter({3, 6});
  Check([&] { return Weigh(AddPositions(x, positions, table, *alone_)); }, {x}, {&table});
}

TEST_F(FiniteDifferences, HeadNorm) {
  for (const auto& [heads, kv_heads] : {std::pair(4, 2), std::pair(2, 1), std::pair(1, 1)}) {
    for (const double offset : {0.0, 1.0}) {
      const at::Tensor qkv = Input({5, (heads + 2 * kv_heads) * 4});
      TensorWeight q_norm = Parameter({4}), k_norm = Parameter({4});
      HeadNormArguments norm = {heads, kv_heads};
      norm.eps = 1e-3;
      norm.offset = offset;
      norm.q_weight = &q_norm;
      norm.k_weight = &k_norm;
      Check([&] { return Weigh(HeadNorm(qkv, norm, *alone_)); }, {qkv}, {&q_norm, &k_norm});
    }
  }
}

TEST_F(FiniteDifferences, HeadNormsOfOtherKinds) {
  const int64_t heads = 4, kv_heads = 2, head_dim = 4;
  for (const bool layer_norm : {false, true}) {
    for (const bool whole_width : {false, true}) {
      for (const bool own_weights : {false, true}) {
        if (whole_width && (layer_norm || !own_weights)) continue;
        const at::Tensor qkv = Input({5, (heads + 2 * kv_heads) * head_dim});
        TensorWeight q_norm = Parameter({own_weights ? heads * head_dim : head_dim}),
                     k_norm = Parameter({own_weights ? kv_heads * head_dim : head_dim}), q_bias = Parameter({head_dim}),
                     k_bias = Parameter({head_dim});
        HeadNormArguments norm = {heads, kv_heads, layer_norm, whole_width, 1e-3, 0, &q_norm, &k_norm};
        std::vector<TensorWeight*> weights = {&q_norm, &k_norm};
        if (layer_norm && !own_weights) {
          norm.q_bias = &q_bias;
          norm.k_bias = &k_bias;
          weights.insert(weights.end(), {&q_bias, &k_bias});
        }
        Check([&] { return Weigh(HeadNorm(qkv, norm, *alone_)); }, {qkv}, weights);
      }
    }
  }
}

TEST_F(FiniteDifferences, ScaledEmbedding) {
  TensorWeight table = Parameter({7, 5});
  const at::Tensor tokens = TensorOf<int64_t>({3, 0, 3, 6, 3}), anchor = Anchor();
  Check([&] { return Weigh(Embedding(tokens, table, *alone_, anchor, 2.5)); }, {}, {&table});
}

// Sines and cosines of made-up frequencies.
RopeTable Table(int64_t positions, int64_t half) {
  const at::Tensor angles = TestTensors(4).Normal({positions, half}, at::kDouble, 2);
  return {angles.cos(), angles.sin()};
}

TEST_F(FiniteDifferences, SelfAttention) {
  struct Case {
    int64_t heads, kv_heads, window;
    bool rope;
    std::vector<int32_t> cu_seqlens;
    double scale = 0, softcap = 0;
  };
  const int64_t head_dim = 4, tokens = 8;
  const RopeTable table = Table(tokens, head_dim / 2);
  for (const AttentionBackend* backend : {&CpuAttention(), &MathAttention()}) {
    for (const Case& c : {Case{2, 2, 0, false, {0, 8}}, Case{4, 2, 0, true, {0, 3, 4, 8}}, Case{3, 1, 2, true, {0, 8}},
                          Case{4, 2, 3, true, {0, 5, 8, 8}}, Case{4, 2, 0, true, {0, 3, 8}, 0.7},
                          Case{2, 1, 3, true, {0, 8}, 0.7, 0.9}}) {
      SelfAttentionArguments arguments;
      arguments.heads = c.heads;
      arguments.kv_heads = c.kv_heads;
      arguments.head_dim = head_dim;
      arguments.positions = TensorOf<int64_t>({0, 1, 2, 0, 1, 2, 3, 4});
      arguments.rope = c.rope ? &table : nullptr;
      arguments.cu_seqlens = TensorOf(c.cu_seqlens);
      arguments.max_seqlen = 8;
      arguments.window = c.window;
      arguments.scale = c.scale;
      arguments.softcap = c.softcap;
      arguments.backend = backend;
      SCOPED_TRACE(absl::StrCat(backend->name, ", ", c.heads, " heads, window ", c.window));
      const at::Tensor qkv = Input({tokens, (c.heads + 2 * c.kv_heads) * head_dim});
      // The operation rotates its input in place: it gets a copy.
      Check([&] { return Weigh(SelfAttention(qkv.clone(), arguments)); }, {qkv}, {});
    }
  }
}

TEST_F(FiniteDifferences, CrossEntropyHead) {
  const at::Tensor targets = TensorOf<int64_t>({2, -100, 0, 8, -1, 2, 5});
  for (const auto& [z_loss, softcap] : {std::pair(0.0, 0.0), std::pair(0.3, 0.0), std::pair(0.3, 1.5)}) {
    for (const auto& [chunk, biased] : {std::pair(1, false), std::pair(3, true), std::pair(512, false)}) {
      SCOPED_TRACE(absl::StrCat("z_loss ", z_loss, ", softcap ", softcap, ", chunks of ", chunk));
      const at::Tensor x = Input({7, 4});
      TensorWeight weight = Parameter({9, 4}), values = Parameter({9});
      Weight* bias = biased ? &values : nullptr;
      LossHeadOptions options;
      options.scale = 0.25;
      options.z_loss = z_loss;
      options.softcap = softcap;
      options.chunk_tokens = chunk;
      torch::autograd::backward({CrossEntropyHead(x, weight, bias, 9, targets, at::Tensor(), *alone_, options).seed},
                                {});
      EXPECT_EQ(weight.contributions, 1);
      options.with_gradient = false;
      const auto value = [&] {
        const at::Tensor sums = CrossEntropyHead(x, weight, bias, 9, targets, at::Tensor(), *alone_, options).sums;
        return 0.25 * (sums[0].item<double>() + options.z_loss * sums[1].item<double>());
      };
      ExpectDerivative("x", value, x, x.grad());
      ExpectDerivative("weight", value, weight.values(), weight.gradient());
      if (biased) ExpectDerivative("bias", value, values.values(), values.gradient());
      EXPECT_EQ(weight.contributions, 1) << "evaluation adds no gradient";
    }
  }
}

TEST_F(FiniteDifferences, CrossEntropyHeadLooksAtTokensWithTargetOnly) {
  const at::Tensor targets = TensorOf<int64_t>({2, -100, 0, 8, -1, 2, 5}), chosen = TensorOf<int64_t>({0, 2, 3, 5, 6});
  const at::Tensor x = Input({7, 4});
  const TensorWeight values = Parameter({9, 4});
  for (const int64_t chunk : {2, 512}) {
    LossHeadOptions options;
    options.scale = 0.25;
    options.z_loss = 0.3;
    options.chunk_tokens = chunk;
    std::vector<at::Tensor> sums, dx, dw;
    for (const at::Tensor& with_target : {at::Tensor(), chosen}) {
      TensorWeight weight(values.values());
      const at::Tensor leaf = x.detach().clone().requires_grad_();
      const HeadLoss loss = CrossEntropyHead(leaf, weight, nullptr, 9, targets, with_target, *alone_, options);
      torch::autograd::backward({loss.seed}, {});
      sums.push_back(loss.sums);
      dx.push_back(leaf.grad());
      dw.push_back(weight.gradient());
    }
    EXPECT_LT(RelativeError(sums[1], sums[0]), 1e-14);
    EXPECT_LT(RelativeError(dx[1], dx[0]), 1e-14);
    EXPECT_LT(RelativeError(dw[1], dw[0]), 1e-14);
    EXPECT_EQ(dx[1].select(0, 4).abs().max().item<double>(), 0);
  }
}

TEST_F(FiniteDifferences, CrossEntropyHeadWithoutAnyTarget) {
  const at::Tensor x = Input({3, 4});
  TensorWeight weight = Parameter({9, 4});
  const HeadLoss loss = CrossEntropyHead(x, weight, nullptr, 9, TensorOf<int64_t>({-1, -1, -1}), TensorOf<int64_t>({}),
                                         *alone_, LossHeadOptions());
  torch::autograd::backward({loss.seed}, {});
  EXPECT_EQ(weight.contributions, 1);
  EXPECT_EQ(loss.sums.abs().max().item<double>(), 0);
  EXPECT_EQ(x.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(weight.gradient().abs().max().item<double>(), 0);
}

TEST_F(FiniteDifferences, CrossEntropyHeadWithAdapter) {
  const at::Tensor targets = TensorOf<int64_t>({2, -100, 0, 8, -1, 2, 5}), chosen = TensorOf<int64_t>({0, 2, 3, 5, 6});
  const at::Tensor numbers = TensorOf<int64_t>({40, 41, 42, 43, 44, 45, 46});
  for (const double rate : {0.0, 0.4}) {
    for (const double softcap : {0.0, 1.5}) {
      for (const auto& [chunk, biased] : {std::pair(2, true), std::pair(512, false)}) {
        SCOPED_TRACE(absl::StrCat("dropout ", rate, ", softcap ", softcap, ", chunks of ", chunk));
        const at::Tensor x = Input({7, 4});
        TensorWeight weight = Parameter({9, 4}, /*trainable=*/false), a = Parameter({3, 4}), b = Parameter({9, 3}),
                     values = Parameter({9}, /*trainable=*/false);
        Weight* bias = biased ? &values : nullptr;
        Adapter adapter;
        adapter.a = &a;
        AdapterMember member;
        member.rows = 9;
        member.rank = 3;
        member.b = &b;
        member.scale = 0.7;
        adapter.members = {member};
        adapter.dropout.rate = rate;
        if (rate > 0) adapter.tokens = numbers;
        weight.set_adapter(&adapter);
        LossHeadOptions options;
        options.scale = 0.25;
        options.softcap = softcap;
        options.chunk_tokens = chunk;
        torch::autograd::backward({CrossEntropyHead(x, weight, bias, 9, targets, chosen, *alone_, options).seed}, {});
        options.with_gradient = false;
        const auto value = [&] {
          return 0.25 * CrossEntropyHead(x, weight, bias, 9, targets, chosen, *alone_, options).sums[0].item<double>();
        };
        ExpectDerivative("x", value, x, x.grad());
        ExpectDerivative("A", value, a.values(), a.gradient());
        ExpectDerivative("B", value, b.values(), b.gradient());
        EXPECT_EQ(a.contributions + b.contributions, 2);
        if (rate > 0) continue;
        // What generation takes the logits from is the same function.
        at::Tensor logits =
            Logits(x.detach(), weight, bias, 9, TensorOf<int64_t>({0}), *alone_).select(0, 0).to(at::kDouble);
        if (softcap > 0) logits = at::tanh(logits / softcap) * softcap;
        options.chunk_tokens = 512;
        const double loss = CrossEntropyHead(x, weight, bias, 9, targets, TensorOf<int64_t>({0}), *alone_, options)
                                .sums[0]
                                .item<double>();
        EXPECT_NEAR(loss, (at::logsumexp(logits, {0}) - logits[2]).item<double>(), 1e-5);
      }
    }
  }
}

TEST_F(FiniteDifferences, GradientsAddUpOverMicrobatches) {
  const at::Tensor x = Input({3, 6});
  TensorWeight weight = Parameter({4, 6});
  torch::autograd::backward({Weigh(Linear(x, weight, *alone_))}, {});
  const at::Tensor once = weight.gradient().clone();
  torch::autograd::backward({Weigh(Linear(x, weight, *alone_))}, {});
  EXPECT_LT(RelativeError(weight.gradient(), once * 2), 1e-15);
}

}  // namespace
}  // namespace trireme
