// LayerNorm and GELU against plain float64 references, forward and backward, in every dtype.
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/rows/layer_norm.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr double kEps = 1e-5;

class GptKernels : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::ScalarType dtype() const { return GetParam(); }
  at::Tensor Random(at::IntArrayRef sizes, double deviation = 1) {
    return random_.Normal(sizes, GetParam(), deviation);
  }
  static at::Tensor Leaf(const at::Tensor& x) { return x.to(at::kDouble).clone().requires_grad_(); }
  TestTensors random_{22};
};

// Widths below, at and off the vector sizes; rows in one task and in several.
constexpr std::pair<int64_t, int64_t> kGptShapes[] = {{3, 7}, {5, 64}, {9, 1001}, {1100, 96}, {2, 40000}};

TEST_P(GptKernels, LayerNorm) {
  for (const auto& [rows, width] : kGptShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", width));
    const at::Tensor x = Random({rows, width}), weight = Random({width}), bias = Random({width}),
                     dy = Random({rows, width});
    const at::Tensor x_leaf = Leaf(x), weight_leaf = Leaf(weight), bias_leaf = Leaf(bias);
    const at::Tensor expected = reference::LayerNorm(x_leaf, weight_leaf, bias_leaf, kEps);
    torch::autograd::backward({expected}, {dy.to(at::kDouble)});

    const LayerNormResult result = LayerNormForward(x, weight, bias, kEps);
    EXPECT_LT(RelativeError(result.y, expected), Tolerance(dtype()));
    const at::Tensor start = random_.Normal({width}, ArithmeticType(dtype()));
    at::Tensor d_weight = start.clone(), d_bias = start.clone();
    const at::Tensor dx = LayerNormBackward(x, result.mean, result.rstd, weight, dy, &d_weight, &d_bias);
    EXPECT_LT(RelativeError(dx, x_leaf.grad()), Tolerance(dtype()));
    EXPECT_LT(RelativeError(d_weight, start.to(at::kDouble) + weight_leaf.grad()), Tolerance(at::kFloat));
    EXPECT_LT(RelativeError(d_bias, start.to(at::kDouble) + bias_leaf.grad()), Tolerance(at::kFloat));
    EXPECT_TRUE(LayerNormBackward(x, result.mean, result.rstd, weight, dy, nullptr, nullptr).equal(dx));
  }
}

// The mean is taken away before squares are summed: a large one costs no digits of the variance.
TEST_P(GptKernels, LayerNormOfRowsFarFromZero) {
  const at::Tensor x = (random_.Normal({5, 96}, at::kDouble) + 512).to(dtype()), weight = Random({96}),
                   bias = Random({96});
  const at::Tensor expected =
      reference::LayerNorm(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), kEps);
  const double tolerance = dtype() == at::kDouble ? 1e-12 : dtype() == at::kFloat ? 1e-4 : Tolerance(dtype());
  EXPECT_LT(RelativeError(LayerNormForward(x, weight, bias, kEps).y, expected), tolerance);
}

TEST_P(GptKernels, Activations) {
  for (const Activation kind :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu, Activation::kRelu, Activation::kSquaredRelu}) {
    for (const auto& [rows, width] : kGptShapes) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", width, ", kind ", static_cast<int>(kind)));
      const at::Tensor x = Random({rows, width}, 3), d_out = Random({rows, width});
      const at::Tensor leaf = Leaf(x), expected = reference::Activated(leaf, kind);
      torch::autograd::backward({expected}, {d_out.to(at::kDouble)});
      EXPECT_LT(RelativeError(ActivationForward(x, kind), expected), Tolerance(dtype()));
      EXPECT_LT(RelativeError(ActivationBackward(x, d_out, kind), leaf.grad()), Tolerance(dtype()));
    }
  }
}

// Threads of the pool have a gradient mode of their own.
TEST(ActivationTest, TakesTensorsThatWantGradients) {
  const at::Tensor x = TestTensors(3).Normal({200, 700}, at::kFloat).requires_grad_();
  const at::Tensor y = ActivationForward(x, Activation::kGelu);
  EXPECT_FALSE(y.requires_grad());
  EXPECT_LT(RelativeError(y, reference::Activated(x.detach().to(at::kDouble), Activation::kGelu)),
            Tolerance(at::kFloat));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GptKernels, testing::Values(at::kFloat, at::kDouble, at::kBFloat16),
                         [](const auto& info) { return DtypeName(info.param); });

}  // namespace
}  // namespace trireme
