// parallel/layers/token_split.h
// Sequence parallelism (arXiv 2205.05198): between matrix products each of n tensor ranks holds T/n of the tokens, rows
// [rank * T/n, (rank + 1) * T/n). A group of one holds them all and moves nothing.
#ifndef TRIREME_PARALLEL_LAYERS_TOKEN_SPLIT_H_
#define TRIREME_PARALLEL_LAYERS_TOKEN_SPLIT_H_

#include <ATen/core/Tensor.h>

#include "parallel/comm/process_group.h"

namespace trireme {

// Rows under way.
class PendingRows {
 public:
  PendingRows() = default;
  PendingRows(at::Tensor rows, Work work) : rows_(std::move(rows)), work_(std::move(work)) {}
  const at::Tensor& Get() {
    work_.Wait();
    return rows_;
  }

 private:
  at::Tensor rows_;
  Work work_;
};

// part [T/n, width] of every rank -> [T, width]. Collective over `tensor`.
PendingRows StartGatherRows(ProcessGroup& tensor, const at::Tensor& part);
// partial [T, width], summed over ranks -> this rank's rows [T/n, width]. Collective over `tensor`.
PendingRows StartReduceRows(ProcessGroup& tensor, const at::Tensor& partial);

inline at::Tensor GatherRows(ProcessGroup& tensor, const at::Tensor& part) {
  return StartGatherRows(tensor, part).Get();
}
inline at::Tensor ReduceRows(ProcessGroup& tensor, const at::Tensor& partial) {
  return StartReduceRows(tensor, partial).Get();
}

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_TOKEN_SPLIT_H_
