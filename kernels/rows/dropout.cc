#include "kernels/base/dropout.h"

#include <ATen/ops/empty.h>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {

at::Tensor Dropout(const at::Tensor& x, const at::Tensor& tokens, const DropoutOptions& options) {
  if (x.is_cuda()) return cuda::Dropout(x, tokens, options);
  const int64_t rows = x.size(0), width = x.size(1);
  at::Tensor out = at::empty(x.sizes(), x.options());
  const uint32_t threshold = DropThreshold(options.rate);
  DispatchDtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto& loops = LoopsFor<T>();
    ParallelRanges(rows, RowGrain(4 * width), [&](int64_t begin, int64_t end) {
      loops.dropout(end - begin, width, options.first_column, tokens.const_data_ptr<int64_t>() + begin, options.key.low,
                    options.key.high, threshold, static_cast<Arithmetic<T>>(1 / (1 - options.rate)),
                    Data<T>(x) + begin * width, Data<T>(out) + begin * width);
    });
  });
  return out;
}

}  // namespace trireme
