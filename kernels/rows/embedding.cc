#include <ATen/ops/empty.h>

#include <cstring>

#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {

at::Tensor EmbeddingForward(const at::Tensor& tokens, const at::Tensor& weight) {
  if (weight.is_cuda()) return cuda::EmbeddingForward(tokens, weight);
  const int64_t rows = tokens.size(0), width = weight.size(1);
  at::Tensor out = at::empty({rows, width}, weight.options());
  const int64_t* ids = Data<int64_t>(tokens);
  const size_t row_bytes = width * weight.element_size();
  ParallelRanges(rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      TRIREME_CHECK(ids[r] >= 0 && ids[r] < weight.size(0), "token ", ids[r], " outside the embedding's ",
                    weight.size(0), " rows");
      std::memcpy(static_cast<char*>(out.data_ptr()) + r * row_bytes,
                  static_cast<const char*>(weight.data_ptr()) + ids[r] * row_bytes, row_bytes);
    }
  });
  return out;
}

void AddEmbeddingGradient(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& accumulator) {
  if (dy.is_cuda()) return cuda::AddEmbeddingGradient(tokens, dy, accumulator);
  const int64_t rows = tokens.size(0), width = dy.size(1);
  const int64_t* ids = Data<int64_t>(tokens);
  DispatchDtype(dy.scalar_type(), [&](auto type) {
    using T = decltype(type);
    // Threads take columns: every row of the accumulator is added in token order.
    ParallelRanges(width, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r) {
        if (ids[r] < 0 || ids[r] >= accumulator.size(0)) continue;
        LoopsFor<T>().accumulate(end - begin, Data<Arithmetic<T>>(accumulator) + ids[r] * width + begin,
                                 Data<T>(dy) + r * width + begin);
      }
    });
  });
}

}  // namespace trireme
