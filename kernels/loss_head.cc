#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/dispatch_dtype.h"
#include "kernels/ops.h"

namespace trireme {

LossHeadResult LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                        const LossHeadOptions& options, at::Tensor* d_weight) {
  if (x.is_cuda()) return cuda::LossHead(x, weight, targets, options, d_weight);
  const int64_t tokens = x.size(0), vocab = weight.size(0);
  const at::ScalarType arithmetic = ArithmeticType(x.scalar_type());
  LossHeadResult result;
  result.sums = at::zeros({2}, x.options().dtype(at::kDouble));
  if (options.with_gradient) result.dx = at::empty(x.sizes(), x.options());
  const int64_t chunk = std::min(options.chunk_tokens, tokens);
  // Converted once, not once per chunk.
  at::Tensor wide_weight = weight, wide_x = x;
  if (weight.scalar_type() == at::kBFloat16) {
    wide_weight = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
    CopyConverted(weight, wide_weight);
    wide_x = at::empty(x.sizes(), x.options().dtype(at::kFloat));
    CopyConverted(x, wide_x);
  }
  const int64_t* target = Data<int64_t>(targets);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t rows = std::min(chunk, tokens - begin);
    at::Tensor part = wide_x.narrow(0, begin, rows);
    at::Tensor logits = MatmulTransposed(part, wide_weight);  // [rows, vocab], arithmetic type
    std::vector<double> loss(rows), z(rows);
    DispatchDtype(arithmetic, [&](auto type) {
      using C = decltype(type);
      if constexpr (!std::is_same_v<C, Bf16>) {
        const auto& loops = LoopsFor<C>();
        ParallelRanges(rows, RowGrain(vocab), [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; ++r) {
            C* row = Data<C>(logits) + r * vocab;
            const int64_t id = target[begin + r];
            TRIREME_CHECK(id < vocab, "target ", id, " outside the head's ", vocab, " rows");
            C lse;
            loss[r] = loops.cross_entropy(vocab, row, id, &lse);
            z[r] = id < 0 ? 0 : static_cast<double>(lse) * lse;
            if (options.with_gradient) {
              loops.cross_entropy_backward(vocab, row, id, lse, static_cast<C>(options.scale),
                                           static_cast<C>(options.z_loss));
            }
          }
        });
      }
    });
    double* sums = Data<double>(result.sums);
    for (int64_t r = 0; r < rows; ++r) {
      sums[0] += loss[r];
      sums[1] += z[r];
    }
    if (!options.with_gradient) continue;
    at::Tensor dx = Matmul(logits, wide_weight);
    at::Tensor dx_part = result.dx.narrow(0, begin, rows);
    CopyConverted(dx, dx_part);
    if (d_weight != nullptr) AddOuterProduct(logits, part, *d_weight);
  }
  return result;
}

}  // namespace trireme
