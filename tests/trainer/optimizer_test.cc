// The update rules on buffers: which elements decay, what follows the weights, and that cutting changes no bit.
#include "trainer/loop/optimizer.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "parallel/comm/mpi_group.h"
#include "tests/kernels/decisions.h"
#include "tests/kernels/test_tensors.h"
#include "tests/parallel/played_group.h"

namespace trireme {
namespace {

std::vector<ParameterSpec> Specs() {
  ParameterSpec norm, matrix;
  norm.name = "norm";
  norm.shape = {300};
  norm.decay = false;
  norm.initialization = Initialization::kOnes;
  matrix.name = "matrix";
  matrix.shape = {37, 50};
  matrix.standard_deviation = 0.5;
  return {norm, matrix};
}

BufferOptions SelfOptions() {
  BufferOptions options;
  options.name = "unit";
  options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("self");
  return options;
}

OptimizerConfig AdamWConfig() {
  OptimizerConfig config;
  config.mutable_adamw()->set_weight_decay(0.1);
  return config;
}
OptimizerConfig SgdConfig(double momentum) {
  OptimizerConfig config;
  config.mutable_sgd()->set_momentum(momentum);
  config.mutable_sgd()->set_weight_decay(0.1);
  return config;
}

// The gradient of step `step`: the same values wherever the buffer is cut.
void Backward(ParameterBuffer& buffer, int64_t step) {
  buffer.BeginStep();
  TestTensors random(static_cast<uint64_t>(step));
  for (size_t i = 0; i < buffer.specs().size(); ++i) {
    const at::Tensor gradient = random.Normal(buffer.specs()[i].shape, at::kFloat);
    if (buffer.weight(static_cast<int>(i)).trainable())
      buffer.weight(static_cast<int>(i)).AddGradient([=](at::Tensor& accumulator, bool overwrite) {
        overwrite ? accumulator.copy_(gradient) : accumulator.add_(gradient);
      });
  }
  buffer.StartReduce(true);
  buffer.FinishGradients(1);
}

// For update number `step`, with the default betas.
at::Tensor Decision(double clip_factor, int64_t step) {
  return DecisionTo(clip_factor, step, AdamW().beta1(), AdamW().beta2());
}

at::Tensor Part(const at::Tensor& tensor, const ParameterBuffer& buffer, int segment) {
  return tensor.narrow(0, buffer.segments()[segment].own_begin, buffer.segments()[segment].numel).to(at::kDouble);
}

TEST(OptimizerTest, SgdByTheBook) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  buffer.Initialize(1);
  Optimizer optimizer(SgdConfig(0.9), {&buffer}, 1);
  ASSERT_EQ(optimizer.states().size(), 1u);
  EXPECT_EQ(optimizer.states()[0].name, "velocity");
  std::vector<at::Tensor> p = {Part(buffer.own_weights(), buffer, 0), Part(buffer.own_weights(), buffer, 1)};
  std::vector<at::Tensor> velocity = {p[0] * 0, p[1] * 0};
  for (int64_t step = 1; step <= 3; ++step) {
    Backward(buffer, step);
    for (int i = 0; i < 2; ++i) {
      velocity[i] = velocity[i] * 0.9 + Part(buffer.own_gradient(), buffer, i) * 0.5;
      p[i] = p[i] * (i == 1 ? 1 - 0.01 * 0.1 : 1) - velocity[i] * 0.01;  // Norms do not decay.
    }
    optimizer.Step(step, 0.01, Decision(/*clip_factor=*/0.5, step));
  }
  for (int i = 0; i < 2; ++i) EXPECT_LT(RelativeError(Part(buffer.own_weights(), buffer, i), p[i]), 1e-6) << i;
}

TEST(OptimizerTest, AdamWByTheBook) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  buffer.Initialize(1);
  Optimizer optimizer(AdamWConfig(), {&buffer}, 1);
  const AdamW c = AdamWConfig().adamw();
  std::vector<at::Tensor> p = {Part(buffer.own_weights(), buffer, 0), Part(buffer.own_weights(), buffer, 1)};
  std::vector<at::Tensor> m = {p[0] * 0, p[1] * 0}, v = {p[0] * 0, p[1] * 0};
  for (int64_t step = 1; step <= 4; ++step) {
    Backward(buffer, step);
    for (int i = 0; i < 2; ++i) {
      const at::Tensor g = Part(buffer.own_gradient(), buffer, i) * 0.25;
      m[i] = m[i] * c.beta1() + g * (1 - c.beta1());
      v[i] = v[i] * c.beta2() + g * g * (1 - c.beta2());
      const at::Tensor m_hat = m[i] / (1 - std::pow(c.beta1(), step)), v_hat = v[i] / (1 - std::pow(c.beta2(), step));
      p[i] = p[i] * (i == 1 ? 1 - 0.01 * c.weight_decay() : 1) - m_hat / (v_hat.sqrt() + c.eps()) * 0.01;
    }
    optimizer.Step(step, 0.01, Decision(/*clip_factor=*/0.25, step));
  }
  for (int i = 0; i < 2; ++i) EXPECT_LT(RelativeError(Part(buffer.own_weights(), buffer, i), p[i]), 1e-6) << i;
  ASSERT_EQ(optimizer.states().size(), 2u);
  EXPECT_EQ(optimizer.states()[0].name, "exp_avg");
  EXPECT_EQ(optimizer.states()[1].name, "exp_avg_sq");
  const Optimizer::State& second = optimizer.states()[1];
  const at::Tensor of_matrix = second.tensor.narrow(0, second.begin[1], buffer.segments()[1].numel);
  EXPECT_LT(RelativeError(of_matrix.to(at::kDouble), v[1]), 1e-6);
  EXPECT_EQ(optimizer.MemoryBytes(), 2 * (320 + 1856) * 4) << "of 300 and 37 x 50 elements, in packs of 64";
}

OptimizerConfig LionConfig() {
  OptimizerConfig config;
  config.mutable_lion()->set_weight_decay(0.1);
  return config;
}
OptimizerConfig MuonConfig() {
  OptimizerConfig config;
  config.mutable_muon()->set_weight_decay(0.1);
  return config;
}

TEST(OptimizerTest, MuonLeavesAllButMatricesOfBlocksToAdamW) {
  std::vector<ParameterSpec> specs = Specs();
  specs.push_back(specs[1]);
  specs[2].name = "block";
  specs[2].block_matrix = true;
  specs[2].matrices = 37;  // of one row each, whose orthogonalized direction is the row over its norm
  ParameterBuffer buffer(specs, SelfOptions()), by_adamw(specs, SelfOptions());
  OptimizerConfig config = MuonConfig();
  config.mutable_muon()->set_momentum(0);
  config.mutable_muon()->mutable_adamw()->set_learning_rate(2 * config.muon().learning_rate());
  Optimizer optimizer(config, {&buffer}, 1), adamw(AdamWConfig(), {&by_adamw}, 1);
  for (ParameterBuffer* each : {&buffer, &by_adamw}) {
    each->Initialize(1);
    Backward(*each, 1);
  }
  const at::Tensor before = Part(buffer.own_weights(), buffer, 2).view({37, 50});
  const at::Tensor gradient = Part(buffer.own_gradient(), buffer, 2).view({37, 50});
  optimizer.Step(1, 0.01, Decision(1, 1));
  adamw.Step(1, 0.02, Decision(1, 1));
  for (int i = 0; i < 2; ++i)
    EXPECT_TRUE(Part(buffer.own_weights(), buffer, i).equal(Part(by_adamw.own_weights(), by_adamw, i))) << i;
  double size = 1;  // five steps of the polynomial, of the one singular value
  for (int step = 0; step < 5; ++step) size *= 3.4445 - 4.7750 * size * size + 2.0315 * size * size * size * size;
  const at::Tensor unit = gradient / gradient.norm(2, {1}, /*keepdim=*/true);
  const at::Tensor expected = before * (1 - 0.01 * 0.1) - unit * (0.01 * size);
  EXPECT_LT(RelativeError(Part(buffer.own_weights(), buffer, 2), expected.view({-1})), 1e-6);
}

TEST(OptimizerTest, GroupsSayRateAndDecay) {
  std::vector<ParameterSpec> specs = Specs();
  specs[0].weight_decay = 0.5;
  specs[1].rate = 3;
  specs[1].weight_decay = 0;
  ParameterBuffer buffer(specs, SelfOptions());
  buffer.Initialize(1);
  std::vector<at::Tensor> p = {Part(buffer.own_weights(), buffer, 0), Part(buffer.own_weights(), buffer, 1)};
  Optimizer optimizer(SgdConfig(0), {&buffer}, 1);
  Backward(buffer, 1);
  p[0] = p[0] * (1 - 0.01 * 0.5) - Part(buffer.own_gradient(), buffer, 0) * 0.01;
  p[1] = p[1] - Part(buffer.own_gradient(), buffer, 1) * 0.03;
  optimizer.Step(1, 0.01, Decision(1, 1));
  for (int i = 0; i < 2; ++i) EXPECT_LT(RelativeError(Part(buffer.own_weights(), buffer, i), p[i]), 1e-6) << i;
}

TEST(OptimizerTest, ComputeCopiesFollowTheMaster) {
  for (const OptimizerConfig& config : {AdamWConfig(), SgdConfig(0), LionConfig(), MuonConfig()}) {
    BufferOptions options = SelfOptions();
    options.compute = at::kBFloat16;
    ParameterBuffer buffer(Specs(), options);
    buffer.Initialize(1);
    buffer.Publish(false);
    const at::Tensor before = buffer.own_weights().clone();
    Optimizer optimizer(config, {&buffer}, 1);
    Backward(buffer, 1);
    optimizer.Step(1, 0.01, Decision(1, 1));
    EXPECT_FALSE(buffer.own_weights().equal(before));
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(Part(buffer.own_compute(), buffer, i).equal(Part(buffer.own_weights().to(at::kBFloat16), buffer, i)));
    }
    EXPECT_TRUE(buffer.weight(0).full().data.to(at::kDouble).equal(Part(buffer.own_compute(), buffer, 0)));
  }
}

TEST(OptimizerTest, FrozenParametersStay) {
  std::vector<ParameterSpec> specs = Specs();
  specs[1].trainable = false;
  ParameterBuffer buffer(specs, SelfOptions());
  buffer.Initialize(1);
  const at::Tensor norm = Part(buffer.own_weights(), buffer, 0).clone();
  const at::Tensor matrix = Part(buffer.own_weights(), buffer, 1).clone();
  Optimizer optimizer(AdamWConfig(), {&buffer}, 1);
  EXPECT_EQ(optimizer.MemoryBytes(), 2 * 320 * 4) << "no state of what stays";
  Backward(buffer, 1);
  optimizer.Step(1, 0.01, Decision(1, 1));
  EXPECT_TRUE(Part(buffer.own_weights(), buffer, 1).equal(matrix)) << "not even decay";
  EXPECT_FALSE(Part(buffer.own_weights(), buffer, 0).equal(norm));
}

// The only layer's four experts got 3, 1, 0 and 0 tokens of the 4.
ExpertLoads UnevenLoads() {
  const std::shared_ptr<ProcessGroup> self = MakeSelfGroup("self");
  ExpertLoads loads({{"model.layers.0", 4}}, RouterLossRule(), self, self, self, at::kCPU);
  loads.Begin(4);
  Routing routing;
  routing.shares = TensorOf(std::vector<float>(16, 0.25F)).view({4, 4});
  routing.indices = TensorOf(std::vector<int64_t>{0, 0, 1, 0}).view({4, 1});
  RoutedTokens tokens;
  loads.Account("model.layers.0", routing.shares, routing, tokens);
  tokens.first_pass = false;  // computed again: does not count
  loads.Account("model.layers.0", routing.shares, routing, tokens);
  loads.Sum();
  return loads;
}

TEST(OptimizerTest, BiasesOfExpertsFollowTheirLoadsUnlessTheUpdateIsSkipped) {
  std::vector<ParameterSpec> specs = Specs();
  ParameterSpec bias;
  bias.name = "model.layers.0.mlp.gate.bias";
  bias.shape = {4};
  bias.initialization = Initialization::kZeros;
  bias.trainable = false;
  bias.balanced = true;
  specs.push_back(bias);
  ParameterBuffer buffer(specs, SelfOptions());
  buffer.Initialize(1);
  OptimizerConfig config = AdamWConfig();
  config.set_router_bias_rate(0.25);
  Optimizer optimizer(config, {&buffer}, 1);
  const ExpertLoads loads = UnevenLoads();
  UpdateDecision skip;
  skip.apply = 0;
  Backward(buffer, 1);
  optimizer.Step(1, 0.01, TensorOf(skip), &loads);
  EXPECT_TRUE(Part(buffer.own_weights(), buffer, 2).equal(at::zeros({4}, at::kDouble)));
  optimizer.Step(2, 0.01, Decision(/*clip_factor=*/0.5, 1), &loads);
  // The mean is one token.
  EXPECT_TRUE(Part(buffer.own_weights(), buffer, 2).equal(TensorOf(std::vector<double>{-0.25, 0, 0.25, 0.25})));
  EXPECT_EQ(buffer.UniqueGradients().size(), 2u) << "the norm is of the others";
}

TEST(OptimizerTest, SkippedStepsDoNotAgeTheMoments) {
  ParameterBuffer buffer(Specs(), SelfOptions()), other(Specs(), SelfOptions());
  buffer.Initialize(1);
  other.Initialize(1);
  Optimizer optimizer(AdamWConfig(), {&buffer}, 1), without(AdamWConfig(), {&other}, 1);
  UpdateDecision skip;
  skip.apply = 0;
  Backward(buffer, 1);
  optimizer.Step(1, 0.01, TensorOf(skip));
  for (int64_t update = 1; update <= 2; ++update) {
    for (ParameterBuffer* each : {&buffer, &other}) Backward(*each, update + 1);
    optimizer.Step(update + 1, 0.01, Decision(1, update));
    without.Step(update, 0.01, Decision(1, update));
  }
  EXPECT_TRUE(buffer.own_weights().equal(other.own_weights()));
}

// Stochastic rounding included: its random bits belong to elements, not to ranks.
TEST(OptimizerTest, ShardsGiveTheSameBitsAsTheWhole) {
  struct Case {
    const char* name;
    OptimizerConfig config;
    at::ScalarType compute;
    bool master;
  };
  for (const Case& c : {Case{"sgd", SgdConfig(0.9), at::kFloat, true}, Case{"adamw", AdamWConfig(), at::kFloat, true},
                        Case{"adamw, bf16, no master", AdamWConfig(), at::kBFloat16, false},
                        Case{"lion, bf16, no master", LionConfig(), at::kBFloat16, false}}) {
    for (const int ranks : {2, 3}) {
      SCOPED_TRACE(absl::StrCat(c.name, ", ", ranks, " ranks"));
      BufferOptions options = SelfOptions();
      options.compute = c.compute;
      options.master_weights = c.master;
      ParameterBuffer whole(Specs(), options);
      whole.Initialize(1);
      Optimizer whole_optimizer(c.config, {&whole}, 9);
      std::vector<std::unique_ptr<ParameterBuffer>> buffers;
      std::vector<std::shared_ptr<PlayedGroup>> groups;
      std::vector<ParameterBuffer*> peers;
      std::vector<std::unique_ptr<Optimizer>> optimizers;
      for (int rank = 0; rank < ranks; ++rank) {
        groups.push_back(std::make_shared<PlayedGroup>(rank, ranks));
        options.gather_group = options.reduce_group = groups.back();
        buffers.push_back(std::make_unique<ParameterBuffer>(Specs(), options));
        buffers.back()->Initialize(1);
        peers.push_back(buffers.back().get());
        optimizers.push_back(
            std::make_unique<Optimizer>(c.config, std::vector<ParameterBuffer*>{buffers.back().get()}, 9));
      }
      for (auto& group : groups) group->AddPeers(peers);
      for (int64_t step = 1; step <= 3; ++step) {
        Backward(whole, step);
        // The played sum multiplies by the number of ranks.
        whole.own_gradient().mul_(ranks);
        whole_optimizer.Step(step, 0.01, Decision(0.5, step));
        for (int rank = 0; rank < ranks; ++rank) {
          Backward(*buffers[rank], step);
          optimizers[rank]->Step(step, 0.01, Decision(0.5, step));
        }
      }
      std::vector<at::Tensor> shards;
      for (auto& buffer : buffers) shards.push_back(buffer->own_weights());
      const at::Tensor joined = at::cat(shards);
      for (const Segment& s : whole.segments()) {
        EXPECT_TRUE(joined.narrow(0, s.own_begin, s.numel).equal(whole.own_weights().narrow(0, s.own_begin, s.numel)));
      }
    }
  }
}

}  // namespace
}  // namespace trireme
