// Precompiled for every target that uses tensors. An operator's header brings most of libtorch's core, so the commonest
// ones are here.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "plain.h"
