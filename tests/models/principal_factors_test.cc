// Against the exact decomposition.
#include "models/blocks/principal_factors.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/pow.h>
#include <gtest/gtest.h>

#include <tuple>

#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

double Norm(const at::Tensor& x) { return at::linalg_vector_norm(x).item<double>(); }

TEST(PrincipalFactors, FindWhatTheLargestSingularValuesMakeUp) {
  TestTensors random{3};
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{40, 90}, {90, 40}, {5, 7}}) {
    const at::Tensor w = random.Normal({rows, columns}, at::kDouble, 1);
    const auto [u, s, v] = at::linalg_svd(w, /*full_matrices=*/false);
    // Singular values as weights have them: few large ones.
    const at::Tensor falling = at::pow(0.8, at::arange(s.size(0), s.options()));
    const at::Tensor matrix = at::mm(u * falling, v);
    for (const int64_t rank : {1, 4}) {
      const Factors factors = PrincipalFactors(matrix, rank);
      ASSERT_EQ(factors.a.sizes(), (std::vector<int64_t>{rank, columns}));
      ASSERT_EQ(factors.b.sizes(), (std::vector<int64_t>{rows, rank}));
      const at::Tensor best = at::mm(u.narrow(1, 0, rank) * falling.narrow(0, 0, rank), v.narrow(0, 0, rank));
      EXPECT_LT(Norm(at::mm(factors.b, factors.a) - best), 1e-5 * Norm(best)) << rows << " x " << columns;
      // Both factors carry the same.
      EXPECT_NEAR(Norm(factors.a), Norm(factors.b), 1e-6);
    }
    EXPECT_TRUE(PrincipalFactors(matrix, 2).a.equal(PrincipalFactors(matrix, 2).a));
  }
}

}  // namespace
}  // namespace trireme
