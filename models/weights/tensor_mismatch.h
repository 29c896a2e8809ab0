// models/weights/tensor_mismatch.h
// How the tensors that a model needs and those that a file has differ, for one error that lists it all.
#ifndef TRIREME_MODELS_WEIGHTS_TENSOR_MISMATCH_H_
#define TRIREME_MODELS_WEIGHTS_TENSOR_MISMATCH_H_

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

std::string ShapeText(const std::vector<int64_t>& shape);  // "[2, 3]"

struct TensorMismatch {
  std::vector<std::string> missing, unexpected, wrong;

  // Notes the tensor if its shape is another than `needed`.
  void CheckShape(const std::string& name, const std::vector<int64_t>& shape, const std::vector<int64_t>& needed);
  bool empty() const { return missing.empty() && unexpected.empty() && wrong.empty(); }
  std::string ToString() const;  // a line for each kind, each after a line break; of many names the first
};

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_TENSOR_MISMATCH_H_
