#include "parallel/layers/token_split.h"

#include <ATen/ops/empty.h>

#include "launch/base/status.h"

namespace trireme {

PendingRows StartGatherRows(ProcessGroup& tensor, const at::Tensor& part) {
  if (tensor.size() == 1) return {part, Work()};
  at::Tensor whole = at::empty({part.size(0) * tensor.size(), part.size(1)}, part.options());
  Work work = tensor.AllGather(whole, part.contiguous());
  return {whole, std::move(work)};
}

PendingRows StartReduceRows(ProcessGroup& tensor, const at::Tensor& partial) {
  if (tensor.size() == 1) return {partial, Work()};
  TRIREME_CHECK(partial.size(0) % tensor.size() == 0, partial.size(0), " tokens do not divide over ", tensor.size(),
                " tensor ranks");
  at::Tensor part = at::empty({partial.size(0) / tensor.size(), partial.size(1)}, partial.options());
  Work work = tensor.ReduceScatter(part, partial.contiguous());
  return {part, std::move(work)};
}

}  // namespace trireme
