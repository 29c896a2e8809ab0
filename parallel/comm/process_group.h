// parallel/comm/process_group.h
// Collectives over an ordered set of ranks.
#ifndef TRIREME_PARALLEL_COMM_PROCESS_GROUP_H_
#define TRIREME_PARALLEL_COMM_PROCESS_GROUP_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/comm/operation_log.h"

namespace trireme {

enum class ReduceOp { kSum, kMax };

// One part of a batched exchange.
struct PeerTransfer {
  enum Direction { kSend, kReceive } direction;
  at::Tensor tensor;  // contiguous
  int peer;           // rank in the group
};

// A collective under way; owns its tensors until waited for. Waiting orders the current stream after it (GPU) or
// completes it (CPU). A failure of the network or a peer ends the process with ExitCode::kPeerLost: no rank can go on
// alone. Destroying it waits.
class Work {
 public:
  Work() = default;  // Already done.
  explicit Work(std::function<void()> wait, std::function<bool()> done = nullptr)
      : wait_(std::move(wait)), done_(std::move(done)) {}
  Work(Work&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)), done_(std::move(other.done_)) {}
  Work& operator=(Work&& other) {
    Wait();
    wait_ = std::exchange(other.wait_, nullptr);
    done_ = std::move(other.done_);
    return *this;
  }
  // Waits, but not while an exception is about to end the job: what this rank owes others will not come, nor will
  // theirs. The tensors are then left to the operation.
  ~Work() {
    if (wait_ && std::uncaught_exceptions() > 0) {
      new std::function<void()>(std::move(wait_));
      return;
    }
    Wait();
  }

  // True when waiting would not take time. Operations that cannot tell say false until waited for.
  bool Done() const { return !wait_ || (done_ && done_()); }

  void Wait() {
    if (!wait_) return;
    const std::function<void()> wait = std::move(wait_);
    wait_ = nullptr;
    wait();
  }

 private:
  std::function<void()> wait_;
  std::function<bool()> done_;
};

// All ranks of the group call the same operations in the same order with matching sizes. Operations start in program
// order; several may be under way. Tensors are contiguous; float32, float64, bfloat16, float16, integers and bytes
// (sums: floating point and integers). CPU sums add in rank order, so every rank gets the same bits. A group of one
// copies, or does nothing.
//
// Calls that do not match are a defect that must not become wrong numbers. Over MPI every rank tells the next one in
// the group what it calls (32 bytes beside each collective, in no count), and no wait ends before the left neighbour's
// call was compared with this rank's: another operation, size, dtype, root or step (OperationLog::BeginStep) ends the
// process with ExitCode::kPeerLost, naming both ranks and both calls. So does a received message of another size than
// its tensor; but Open MPI 4.1 may write past a tensor that is too small for a long one before it says so. Ranks that
// wait in different groups are the watchdog's to find. Calls over NCCL are not compared.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;

  virtual int rank() const = 0;  // of this process within the group
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;  // its axes, as in "data_shard"

  // output [size * n] = every rank's input [n], in rank order. output may contain input at this rank's place.
  virtual Work AllGather(at::Tensor output, at::Tensor input) = 0;
  // output [n] = this rank's part of the sum over ranks of input [size * n]. output may be float32 with bfloat16 input.
  virtual Work ReduceScatter(at::Tensor output, at::Tensor input) = 0;
  virtual Work AllReduce(at::Tensor tensor, ReduceOp op) = 0;  // In place.
  virtual Work Broadcast(at::Tensor tensor, int root) = 0;     // In place.
  // output part r = rank r's input part for this rank; both [size * n].
  virtual Work AllToAll(at::Tensor output, at::Tensor input) = 0;
  // All sends and receives together, without deadlock. Between two ranks, sends match receives in order.
  virtual Work Exchange(std::vector<PeerTransfer> transfers) = 0;
  virtual void Barrier() = 0;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_PROCESS_GROUP_H_
