// tests/kernels/test_tensors.h
// Random tensors from a seed, and how far two tensors are apart.
#ifndef TRIREME_TESTS_KERNELS_TEST_TENSORS_H_
#define TRIREME_TESTS_KERNELS_TEST_TENSORS_H_

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace trireme {

template <typename T>
at::Tensor TensorOf(const std::vector<T>& values) {
  at::Tensor tensor =
      at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  std::copy(values.begin(), values.end(), tensor.template mutable_data_ptr<T>());
  return tensor;
}

class TestTensors {
 public:
  explicit TestTensors(uint64_t seed) : generator_(seed) {}

  // Normally distributed, rounded to `dtype`.
  at::Tensor Normal(at::IntArrayRef sizes, at::ScalarType dtype, double deviation = 1) {
    at::Tensor values = at::empty(sizes, at::TensorOptions().dtype(at::kDouble));
    std::normal_distribution<double> normal(0, deviation);
    double* data = values.mutable_data_ptr<double>();
    for (int64_t i = 0; i < values.numel(); ++i) data[i] = normal(generator_);
    return values.to(dtype);
  }

  int64_t Below(int64_t limit) { return static_cast<int64_t>(generator_() % static_cast<uint64_t>(limit)); }

  at::Tensor Ids(int64_t n, int64_t limit) {
    std::vector<int64_t> ids(n);
    for (int64_t& id : ids) id = Below(limit);
    return TensorOf(ids);
  }

 private:
  std::mt19937_64 generator_;
};

// max |got - want| / max |want|; NaN anywhere gives NaN, which no bound accepts.
inline double RelativeError(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor a = got.to(at::kDouble), b = want.to(at::kDouble);
  return (a - b).abs().max().item<double>() / std::max(b.abs().max().item<double>(), 1e-300);
}

inline std::string DtypeName(at::ScalarType dtype) {
  return dtype == at::kDouble ? "float64" : dtype == at::kFloat ? "float32" : "bfloat16";
}

// Of one rounding in `dtype` plus what sums of a few thousand terms lose, relative to the largest value.
inline double Tolerance(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 3e-6 : 4e-3;
}

}  // namespace trireme

#endif  // TRIREME_TESTS_KERNELS_TEST_TENSORS_H_
