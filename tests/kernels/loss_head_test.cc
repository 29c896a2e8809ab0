// The chunked loss head against at::cross_entropy_loss in float64.
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/kernels/reference.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

class LossHeadTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  // A third of the targets is ignored.
  at::Tensor Targets(int64_t tokens, int64_t vocab) {
    at::Tensor targets = random_.Ids(tokens, vocab);
    for (int64_t i = 0; i < tokens; i += 3) targets.mutable_data_ptr<int64_t>()[i] = i % 2 == 0 ? -100 : -1;
    return targets;
  }
  // float32 sums over the whole vocabulary lose more than one rounding.
  static double GradientTolerance(at::ScalarType dtype) {
    return dtype == at::kDouble ? Tolerance(dtype) : std::max(Tolerance(dtype), 1e-5);
  }
  TestTensors random_{31};
};

TEST_P(LossHeadTest, LikeCrossEntropy) {
  struct Case {
    int64_t tokens, hidden, vocab, chunk;
  };
  for (const Case& c : {Case{5, 3, 2, 512}, Case{67, 24, 1003, 16}, Case{130, 32, 40, 64}, Case{4, 8, 33000, 3}}) {
    for (const double z_loss : {0.0, 1e-2}) {
      SCOPED_TRACE(absl::StrCat(c.tokens, " tokens, vocab ", c.vocab, ", chunk ", c.chunk, ", z ", z_loss));
      const at::Tensor x = random_.Normal({c.tokens, c.hidden}, GetParam());
      const at::Tensor weight = random_.Normal({c.vocab, c.hidden}, GetParam());
      const at::Tensor targets = Targets(c.tokens, c.vocab);
      LossHeadOptions options;
      options.scale = 1.0 / 17;
      options.z_loss = z_loss;
      options.chunk_tokens = c.chunk;
      const at::Tensor x_leaf = x.to(at::kDouble).clone().requires_grad_();
      const at::Tensor weight_leaf = weight.to(at::kDouble).clone().requires_grad_();
      const reference::HeadSums expected = reference::LossHead(x_leaf, weight_leaf, targets);
      torch::autograd::backward({(expected.cross_entropy + expected.squared_lse * z_loss) / 17.0}, {});

      at::Tensor d_weight = at::zeros(weight.sizes(), weight.options().dtype(ArithmeticType(GetParam())));
      const LossHeadResult result = LossHead(x, weight, targets, options, &d_weight);
      const double loss = expected.cross_entropy.item<double>();
      EXPECT_NEAR(result.sums[0].item<double>(), loss, 1e-6 * loss);
      EXPECT_NEAR(result.sums[1].item<double>(), expected.squared_lse.item<double>(),
                  2e-6 * expected.squared_lse.item<double>());
      EXPECT_LT(RelativeError(result.dx, x_leaf.grad()), GradientTolerance(GetParam()));
      EXPECT_LT(RelativeError(d_weight, weight_leaf.grad()), GradientTolerance(at::kFloat));

      options.with_gradient = false;
      const LossHeadResult evaluated = LossHead(x, weight, targets, options, nullptr);
      EXPECT_TRUE(evaluated.sums.equal(result.sums));
      EXPECT_FALSE(evaluated.dx.defined());
    }
  }
}

TEST_P(LossHeadTest, LargeLogitsDoNotOverflow) {
  const at::Tensor x = random_.Normal({9, 16}, GetParam(), 30), weight = random_.Normal({21, 16}, GetParam(), 30);
  const at::Tensor targets = Targets(9, 21);
  const reference::HeadSums expected = reference::LossHead(x.to(at::kDouble), weight.to(at::kDouble), targets);
  const LossHeadResult result = LossHead(x, weight, targets, LossHeadOptions(), nullptr);
  EXPECT_NEAR(result.sums[0].item<double>(), expected.cross_entropy.item<double>(),
              1e-6 * expected.squared_lse.sqrt().item<double>());
  EXPECT_TRUE(result.dx.isfinite().all().item<bool>());
}

TEST_P(LossHeadTest, IgnoredTargetsGiveNothing) {
  const at::Tensor x = random_.Normal({4, 8}, GetParam()), weight = random_.Normal({10, 8}, GetParam());
  at::Tensor d_weight = at::zeros({10, 8}, x.options().dtype(ArithmeticType(GetParam())));
  LossHeadOptions options;
  options.z_loss = 0.1;
  const LossHeadResult result = LossHead(x, weight, TensorOf<int64_t>({-1, -100, -1, -7}), options, &d_weight);
  EXPECT_EQ(result.sums.abs().sum().item<double>(), 0);
  EXPECT_EQ(result.dx.abs().sum().item<double>(), 0);
  EXPECT_EQ(d_weight.abs().sum().item<double>(), 0);
}

TEST_P(LossHeadTest, ChunkSizeDoesNotChangeTheLoss) {
  const at::Tensor x = random_.Normal({50, 16}, GetParam()), weight = random_.Normal({30, 16}, GetParam());
  const at::Tensor targets = Targets(50, 30);
  LossHeadOptions whole, pieces;
  whole.chunk_tokens = 4096;
  pieces.chunk_tokens = 7;
  const at::Tensor a = LossHead(x, weight, targets, whole, nullptr).sums;
  const at::Tensor b = LossHead(x, weight, targets, pieces, nullptr).sums;
  EXPECT_LT(RelativeError(a, b), 1e-6);
}

TEST(LossHeadDeathTest, TargetOutsideTheVocabulary) {
  const at::Tensor x = at::zeros({1, 2}, at::TensorOptions().dtype(at::kFloat));
  EXPECT_DEATH(LossHead(x, at::zeros({3, 2}, x.options()), TensorOf<int64_t>({3}), LossHeadOptions(), nullptr),
               "target 3 outside the head's 3 rows");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LossHeadTest, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

}  // namespace
}  // namespace trireme
