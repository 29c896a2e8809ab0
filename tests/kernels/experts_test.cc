// What experts need: choosing, sorting, rows that travel, gates with weights, products with each expert's matrix.
// Against plain float64, in every dtype.
#include <ATen/ops/arange.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sort.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "kernels/base/thread_pool.h"
#include "kernels/experts/grouped.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

class ExpertKernels : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::ScalarType dtype() const { return GetParam(); }
  at::Tensor Random(at::IntArrayRef sizes, double deviation = 1) { return random_.Normal(sizes, dtype(), deviation); }
  static at::Tensor Product(const at::Tensor& a, const at::Tensor& b) {
    return at::mm(a.to(at::kDouble), b.to(at::kDouble));
  }
  TestTensors random_{23};
};

// Experts without rows, with one, and with more than a task takes; rows as they lie and taken from tokens.
TEST_P(ExpertKernels, Products) {
  const ExpertOffsets offsets = {0, 0, 1, 601, 601, 640};
  const int64_t experts = 5, n = 260, k = 33, tokens = 160;
  for (const int threads : {1, 2, 3}) {
    SetCpuThreads(threads);
    const at::Tensor w = Random({experts * n, k}), few_x = Random({tokens, k}), few_dy = Random({tokens, n});
    const at::Tensor order = random_.Ids(offsets.back(), 4 * tokens);
    for (const bool taken : {false, true}) {
      const at::Tensor x = taken ? TakeRows(few_x, order, 4) : Random({offsets.back(), k}),
                       dy = taken ? TakeRows(few_dy, order, 4) : Random({offsets.back(), n});
      const ExpertRows rows = taken ? ExpertRows(few_x, order, 4) : ExpertRows(x),
                       d_rows = taken ? ExpertRows(few_dy, order, 4) : ExpertRows(dy);
      at::Tensor added = random_.Normal({experts * n, k}, ArithmeticType(dtype())), made = added.clone();
      const at::Tensor before = added.clone().to(at::kDouble);
      const at::Tensor y = GroupedMatmulTransposed(rows, w, offsets), dx = GroupedMatmul(d_rows, w, offsets);
      AddGroupedOuterProducts(d_rows, rows, offsets, added, /*overwrite=*/false);
      AddGroupedOuterProducts(d_rows, rows, offsets, made, /*overwrite=*/true);
      for (int64_t e = 0; e < experts; ++e) {
        const int64_t begin = offsets[static_cast<size_t>(e)], size = offsets[static_cast<size_t>(e) + 1] - begin;
        const at::Tensor matrix = w.narrow(0, e * n, n), inputs = x.narrow(0, begin, size);
        const at::Tensor gradient = Product(dy.narrow(0, begin, size).t(), inputs);
        EXPECT_LT(RelativeError(made.narrow(0, e * n, n), gradient), Tolerance(at::kFloat)) << e;
        EXPECT_LT(RelativeError(added.narrow(0, e * n, n), before.narrow(0, e * n, n) + gradient),
                  Tolerance(at::kFloat))
            << e;
        if (size == 0) continue;
        EXPECT_LT(RelativeError(y.narrow(0, begin, size), Product(inputs, matrix.t())), Tolerance(dtype())) << e;
        EXPECT_LT(RelativeError(dx.narrow(0, begin, size), Product(dy.narrow(0, begin, size), matrix)),
                  Tolerance(dtype()))
            << e;
      }
    }
  }
  SetCpuThreads(2);
}

TEST_P(ExpertKernels, RowsTravelAndComeBack) {
  for (const auto& [tokens, per_token, width] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {7, 3, 513}, {900, 8, 96}, {3, 2, 40000}}) {
    SCOPED_TRACE(absl::StrCat(tokens, " tokens, ", per_token, " choices, width ", width));
    const at::Tensor x = Random({tokens, width}), experts = random_.Ids(tokens * per_token, 5);
    const Grouping grouping = GroupStably(experts.const_data_ptr<int64_t>(), experts.numel(), 5);
    const at::Tensor order = TensorOf(grouping.order), place = TensorOf(grouping.place);
    const at::Tensor rows = TakeRows(x, order, per_token);
    EXPECT_TRUE(rows.equal(x.index_select(0, order.div(per_token, "floor"))));
    EXPECT_TRUE(ExpertRows(x, order, per_token).All().equal(rows));
    // Each choice's row is its own: a sum that takes a wrong one is seen.
    const at::Tensor made = Random({tokens * per_token, width});
    const at::Tensor expected = made.to(at::kDouble).index_select(0, place).view({tokens, per_token, width}).sum(1);
    EXPECT_LT(RelativeError(SumOfChoices(made, place, per_token), expected), Tolerance(dtype()));
  }
  const at::Tensor none = at::arange(0, at::TensorOptions().dtype(at::kLong));
  EXPECT_EQ(TakeRows(Random({3, 4}), none, 2).sizes(), (std::vector<int64_t>{0, 4}));
  EXPECT_EQ(SumOfChoices(Random({0, 4}), none, 2).sizes(), (std::vector<int64_t>{0, 4}));
}

at::Tensor ReferenceGate(const at::Tensor& gate_up, const ExpertGate& gate) {
  if (!gate.clamped.has_value()) return reference::Gated(gate_up, gate.activation);
  const at::Tensor pairs = gate_up.view({gate_up.size(0), -1, 2});
  const at::Tensor g = at::clamp(pairs.select(2, 0), std::nullopt, gate.clamped->limit),
                   u = at::clamp(pairs.select(2, 1), -gate.clamped->limit, gate.clamped->limit);
  return g * at::sigmoid(g * gate.clamped->alpha) * (u + 1);
}

TEST_P(ExpertKernels, GatesWithWeights) {
  const at::ScalarType arithmetic = ArithmeticType(dtype());
  for (const ExpertGate& gate :
       {ExpertGate{Activation::kSilu, {}}, ExpertGate{Activation::kGeluTanh, {}},
        ExpertGate{Activation::kSilu, ClampedGate{1.702, 7}}, ExpertGate{Activation::kSilu, ClampedGate{1.1, 0.75}}}) {
    for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {9, 1001}, {1100, 96}}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", width, ", clamped ", gate.clamped.has_value()));
      const at::Tensor gate_up = Random({rows, 2 * width}, 4), d_out = Random({rows, width});
      const at::Tensor weights = random_.Normal({rows, 1}, arithmetic);
      const at::Tensor leaf = gate_up.to(at::kDouble).clone().requires_grad_(),
                       weight_leaf = weights.to(at::kDouble).clone().requires_grad_();
      const at::Tensor expected = ReferenceGate(leaf, gate) * weight_leaf;
      torch::autograd::backward({expected}, {d_out.to(at::kDouble)});
      const at::Tensor out = ExpertGateForward(gate_up, weights, gate);
      EXPECT_LT(RelativeError(out, expected), Tolerance(dtype()));
      const ExpertGateGradients gradients = ExpertGateBackward(gate_up, weights, d_out, gate);
      EXPECT_TRUE(gradients.out.equal(out));
      EXPECT_LT(RelativeError(gradients.gate_up, leaf.grad()), Tolerance(dtype()));
      EXPECT_LT(RelativeError(gradients.weights, weight_leaf.grad()), Tolerance(arithmetic));
    }
  }
}

// At a limit gradient passes, beyond it none does; far beyond everything stays finite.
TEST_P(ExpertKernels, LimitsOfGates) {
  const at::Tensor gate_up = TensorOf<float>({7, 7, 8, -8, -1000, 7, 1000, -7}).view({1, 8}).to(dtype());
  const at::Tensor one = at::ones({1, 1}, at::TensorOptions().dtype(ArithmeticType(dtype())));
  const at::Tensor d = ExpertGateBackward(gate_up, one, at::ones({1, 4}, gate_up.options()),
                                          ExpertGate{Activation::kSilu, ClampedGate()})
                           .gate_up.to(at::kDouble);
  EXPECT_TRUE(d.isfinite().all().item<bool>());
  const double* g = d.const_data_ptr<double>();
  EXPECT_GT(g[0], 0);
  EXPECT_GT(g[1], 0);
  EXPECT_EQ(g[2], 0);
  EXPECT_EQ(g[3], 0);
  EXPECT_EQ(g[6], 0);
  EXPECT_GT(g[7], 0);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ExpertKernels, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return DtypeName(info.param); });

// Numbers that are often equal: ties go to the lower index, as a stable sort has it.
TEST(LargestOfRows, LikeAStableSort) {
  TestTensors random(24);
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (const int64_t n : {1, 2, 9, 64, 200}) {
      at::Tensor scores = random.Ids(700 * n, 6).view({700, n}).to(type);
      scores[0].fill_(-std::numeric_limits<double>::infinity());
      scores[1][n / 2] = std::numeric_limits<double>::quiet_NaN();
      for (const int64_t count : {int64_t{1}, (n + 1) / 2, n}) {
        const at::Tensor sorted = std::get<1>(at::sort(scores, /*stable=*/true, /*dim=*/1, /*descending=*/true));
        EXPECT_TRUE(LargestOfRows(scores, count).equal(sorted.narrow(1, 0, count))) << n << ", " << count;
      }
    }
  }
}

TEST(Grouping, IsStable) {
  const std::vector<int64_t> values = {2, 0, 2, 4, 0, 2};
  const Grouping grouping = GroupStably(values.data(), static_cast<int64_t>(values.size()), 5);
  EXPECT_EQ(grouping.order, (std::vector<int64_t>{1, 4, 0, 2, 5, 3}));
  EXPECT_EQ(grouping.place, (std::vector<int64_t>{2, 0, 3, 5, 1, 4}));
  EXPECT_EQ(grouping.offsets, (std::vector<int64_t>{0, 2, 2, 5, 5, 6}));
}

}  // namespace
}  // namespace trireme
