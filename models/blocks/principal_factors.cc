#include "models/blocks/principal_factors.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <tuple>

#include "kernels/base/philox.h"

namespace trireme {
namespace {

constexpr int kIterations = 16;
constexpr int64_t kMoreColumns = 16;  // than wanted: they converge faster

// Normal deviates that depend on nothing but their place.
at::Tensor TestMatrix(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  const RandomKey key = MakeRandomKey(/*seed=*/0, RandomPurpose::kInitialization, StableId("principal factors"), 0);
  at::Tensor values = at::empty({rows, columns}, at::TensorOptions().dtype(at::kDouble));
  double* out = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < rows * columns; ++i) {
    const Random4 random = Philox(key, static_cast<uint64_t>(i), 0);
    const double u = (random.word[0] + 1.0) / 4294967296.0, v = random.word[1] / 4294967296.0;
    out[i] = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }
  return values.to(options);
}

at::Tensor Orthonormal(const at::Tensor& columns) { return std::get<0>(at::linalg_qr(columns)); }

}  // namespace

Factors PrincipalFactors(const at::Tensor& w, int64_t rank) {
  const at::NoGradGuard no_grad;
  const int64_t width = std::min({rank + kMoreColumns, w.size(0), w.size(1)});
  at::Tensor basis = Orthonormal(at::mm(w, TestMatrix(w.size(1), width, w.options())));  // of the column space
  for (int i = 0; i < kIterations; ++i) basis = Orthonormal(at::mm(w, Orthonormal(at::mm(w.t(), basis))));
  const auto [u, s, v] = at::linalg_svd(at::mm(basis.t(), w), /*full_matrices=*/false);
  const at::Tensor roots = s.narrow(0, 0, rank).sqrt();
  return {v.narrow(0, 0, rank) * roots.unsqueeze(1), at::mm(basis, u.narrow(1, 0, rank)) * roots};
}

}  // namespace trireme
