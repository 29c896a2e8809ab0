// parallel/layers/gpt_functions.h
// The differentiable operations of GPT's decoders that Llama's have not. Conventions as in parallel/layers/functions.h.
#ifndef TRIREME_PARALLEL_LAYERS_GPT_FUNCTIONS_H_
#define TRIREME_PARALLEL_LAYERS_GPT_FUNCTIONS_H_

#include <ATen/core/Tensor.h>

#include "kernels/base/weight.h"
#include "kernels/rows/gelu.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/kept_results.h"

namespace trireme {

// x [t, H] -> LayerNorm(x) [t, H].
at::Tensor LayerNorm(const at::Tensor& x, Weight& weight, Weight& bias, double eps);

// x [t, H] -> x weight^T + bias [T, N/n]. bias [N/n]: this rank's; null: none. kept, name: where the result may be
// kept.
at::Tensor ColumnLinear(const at::Tensor& x, Weight& weight, Weight* bias, ProcessGroup& tensor, KeptResults* kept,
                        const char* name);

at::Tensor ApplyGelu(const at::Tensor& x, Gelu kind);

// x [t, H] + the rows of table [positions, H] at positions [T] of all ranks' tokens.
at::Tensor AddPositions(const at::Tensor& x, const at::Tensor& positions, Weight& table, ProcessGroup& tensor);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_GPT_FUNCTIONS_H_
