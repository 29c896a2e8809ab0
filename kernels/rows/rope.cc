#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/cuda/ops.h"

namespace trireme {

void ApplyRope(at::Tensor& packed, int64_t heads, int64_t head_dim, const at::Tensor& positions, const RopeTable& table,
               bool inverse) {
  if (packed.is_cuda()) return cuda::ApplyRope(packed, heads, head_dim, positions, table, inverse);
  const int64_t rows = packed.size(0), stride = packed.stride(0), places = table.cosine.size(0);
  const int64_t* position = Data<int64_t>(positions);
  DispatchDtype(packed.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    ParallelRanges(rows, RowGrain(heads * head_dim), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        TRIREME_CHECK(position[r] >= 0 && position[r] < places, "position ", position[r],
                      " outside the rotation table's ", places, " rows");
      }
      LoopsFor<T>().rope(end - begin, heads, head_dim, table.cosine.size(1), table.interleaved, stride,
                         Data<T>(packed) + begin * stride, position + begin, Data<C>(table.cosine), Data<C>(table.sine),
                         inverse ? C(-1) : C(1));
    });
  });
}

}  // namespace trireme
