// Precompiled for every target that uses tensors; what it includes must stay this small.
#include <ATen/core/Tensor.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <memory>
#include <string>
#include <vector>
