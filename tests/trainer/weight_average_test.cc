// The moving average of weights: what it is, and that buffers hold it for a moment only. Against
// torch.optim.swa_utils: tests/oracle/optimizer_oracle.py.
#include "trainer/loop/weight_average.h"

#include <gtest/gtest.h>

#include "parallel/comm/mpi_group.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

std::unique_ptr<ParameterBuffer> BufferOf(at::ScalarType compute, bool trainable) {
  ParameterSpec spec;
  spec.name = "matrix";
  spec.shape = {30, 40};
  spec.trainable = trainable;
  BufferOptions options;
  options.compute = compute;
  options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("self");
  auto buffer = std::make_unique<ParameterBuffer>(std::vector<ParameterSpec>{spec}, options);
  buffer->Initialize(1);
  buffer->Publish(/*converted=*/false);
  return buffer;
}

EmaConfig Config(double decay, int every_steps) {
  EmaConfig config;
  config.set_decay(decay);
  config.set_every_steps(every_steps);
  return config;
}

TEST(WeightAverage, FollowsFromTheFirstWeightsOn) {
  const std::unique_ptr<ParameterBuffer> buffer = BufferOf(at::kFloat, true), frozen = BufferOf(at::kFloat, false);
  WeightAverage average(Config(0.75, 2), {buffer.get(), frozen.get()});
  EXPECT_TRUE(average.empty());
  at::Tensor expected;
  for (int64_t step = 1; step <= 6; ++step) {
    buffer->own_weights().add_(0.125 * static_cast<double>(step));
    average.Follow(step);
    if (step == 2) expected = buffer->own_weights().to(at::kDouble);
    if (step == 4 || step == 6) expected = expected * 0.75 + buffer->own_weights().to(at::kDouble) * 0.25;
  }
  EXPECT_EQ(average.updates(), 3);
  EXPECT_LT(RelativeError(average.Of(buffer.get()), expected), 1e-7);
  EXPECT_FALSE(average.Of(frozen.get()).defined()) << "what stays needs none";
  EXPECT_EQ(average.MemoryBytes(), buffer->own_weights().numel() * 4);
}

TEST(WeightAverage, StandsInTheBuffersForAMoment) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    const std::unique_ptr<ParameterBuffer> buffer = BufferOf(compute, true);
    WeightAverage average(Config(0.5, 1), {buffer.get()});
    average.Follow(1);
    buffer->own_weights().mul_(3);
    buffer->Publish(/*converted=*/false);
    average.Follow(2);
    const at::Tensor before = buffer->own_weights().clone(), used = buffer->weight(0).full().data.clone();
    {
      const WeightAverage::InPlace averaged(average);
      const at::Tensor now = buffer->weight(0).full().data;
      EXPECT_TRUE(now.view({-1}).equal(average.Of(buffer.get()).narrow(0, 0, now.numel()).to(compute)));
      EXPECT_FALSE(now.equal(used));
    }
    EXPECT_TRUE(buffer->own_weights().equal(before));
    EXPECT_TRUE(buffer->weight(0).full().data.equal(used));
  }
}

}  // namespace
}  // namespace trireme
