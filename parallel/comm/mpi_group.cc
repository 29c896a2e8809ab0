#include "parallel/comm/mpi_group.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <sched.h>

#include <limits>

#include "kernels/ops.h"
#include "launch/log.h"
#include "launch/process.h"
#include "launch/status.h"

namespace trireme {
namespace {

// MPI counts are ints: large messages are counted in blocks.
struct Block {
  MPI_Datatype type;
  int count;
};
Block BlocksOf(int64_t bytes) {
  if (bytes <= std::numeric_limits<int>::max()) return {MPI_BYTE, static_cast<int>(bytes)};
  constexpr int kBlock = 512;
  static const MPI_Datatype block = [] {
    MPI_Datatype type;
    MPI_Type_contiguous(kBlock, MPI_BYTE, &type);
    MPI_Type_commit(&type);
    return type;
  }();
  TRIREME_CHECK(bytes % kBlock == 0 && bytes / kBlock <= std::numeric_limits<int>::max(), "a message of ", bytes,
                " bytes");
  return {block, static_cast<int>(bytes / kBlock)};
}

// parts [ranks, n] -> out [n], adding in rank order.
void ReduceParts(const at::Tensor& parts, ReduceOp op, at::Tensor out) {
  if (op == ReduceOp::kMax) {
    out.copy_(at::amax(parts, {0}));
  } else if (parts.scalar_type() == at::kFloat || parts.scalar_type() == at::kDouble ||
             parts.scalar_type() == at::kBFloat16) {
    SumInOrder(parts, out);
  } else {
    out.copy_(at::sum(parts, {0}, /*keepdim=*/false, parts.scalar_type()));
  }
}

class MpiGroup final : public ProcessGroup {
 public:
  MpiGroup(const std::string& name, MPI_Comm communicator, OperationLog* log)
      : name_(name), communicator_(communicator), log_(log) {
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }
  ~MpiGroup() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) MPI_Comm_free(&communicator_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  Work AllGather(at::Tensor output, at::Tensor input) override {
    CheckSizes("all_gather", output.numel(), input.numel() * size_);
    const int64_t bytes = input.nbytes();
    const int64_t ticket = log_->Start(name_, "all_gather", bytes * size_, bytes * (size_ - 1));
    const Block block = BlocksOf(bytes);
    char* own = static_cast<char*>(output.data_ptr()) + rank_ * bytes;
    const void* source = own == input.data_ptr() ? MPI_IN_PLACE : input.data_ptr();
    MPI_Request request;
    Check("all_gather", MPI_Iallgather(source, block.count, block.type, output.data_ptr(), block.count, block.type,
                                       communicator_, &request));
    return Pending("all_gather", ticket, {request}, [output, input] {});
  }

  Work ReduceScatter(at::Tensor output, at::Tensor input) override {
    CheckSizes("reduce_scatter", input.numel(), output.numel() * size_);
    const int64_t bytes = input.nbytes() / size_;
    const int64_t ticket = log_->Start(name_, "reduce_scatter", input.nbytes(), bytes * (size_ - 1));
    at::Tensor parts = at::empty({size_, output.numel()}, input.options());
    const Block block = BlocksOf(bytes);
    MPI_Request request;
    Check("reduce_scatter", MPI_Ialltoall(input.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                          block.type, communicator_, &request));
    return Pending("reduce_scatter", ticket, {request},
                   [output, input, parts] { ReduceParts(parts, ReduceOp::kSum, output.view({-1})); });
  }

  Work AllReduce(at::Tensor tensor, ReduceOp op) override {
    constexpr int64_t kSmall = 16384;
    const int64_t n = tensor.numel();
    const bool small = n <= kSmall;
    const int64_t part = (n + size_ - 1) / size_;
    const int64_t sent = small ? static_cast<int64_t>(tensor.nbytes()) * (size_ - 1)
                               : 2 * part * static_cast<int64_t>(tensor.element_size()) * (size_ - 1);
    const int64_t ticket = log_->Start(name_, "all_reduce", tensor.nbytes(), sent);
    MPI_Request request;
    if (small) {
      at::Tensor parts = at::empty({size_, n}, tensor.options());
      const Block block = BlocksOf(tensor.nbytes());
      Check("all_reduce", MPI_Iallgather(tensor.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                         block.type, communicator_, &request));
      return Pending("all_reduce", ticket, {request},
                     [tensor, parts, op] { ReduceParts(parts, op, tensor.view({-1})); });
    }
    // Every rank reduces its part, then all parts are gathered: twice the data once, whatever the number of ranks.
    at::Tensor padded = at::zeros({size_ * part}, tensor.options());
    padded.narrow(0, 0, n).copy_(tensor.view({-1}));
    at::Tensor parts = at::empty({size_, part}, tensor.options());
    const Block block = BlocksOf(part * static_cast<int64_t>(tensor.element_size()));
    Check("all_reduce", MPI_Ialltoall(padded.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                      block.type, communicator_, &request));
    return Pending("all_reduce", ticket, {request}, [this, tensor, padded, parts, op, block, n, part]() mutable {
      at::Tensor own = padded.narrow(0, rank_ * part, part);
      ReduceParts(parts, op, own);
      MPI_Request gather;
      Check("all_reduce", MPI_Iallgather(MPI_IN_PLACE, block.count, block.type, padded.data_ptr(), block.count,
                                         block.type, communicator_, &gather));
      WaitFor("all_reduce", {gather});
      tensor.view({-1}).copy_(padded.narrow(0, 0, n));
    });
  }

  Work Broadcast(at::Tensor tensor, int root) override {
    const int64_t ticket = log_->Start(name_, "broadcast", tensor.nbytes(), rank_ == root ? tensor.nbytes() : 0);
    const Block block = BlocksOf(tensor.nbytes());
    MPI_Request request;
    Check("broadcast", MPI_Ibcast(tensor.data_ptr(), block.count, block.type, root, communicator_, &request));
    return Pending("broadcast", ticket, {request}, [tensor] {});
  }

  Work AllToAll(at::Tensor output, at::Tensor input) override {
    CheckSizes("all_to_all", output.numel(), input.numel());
    const int64_t bytes = input.nbytes() / size_;
    const int64_t ticket = log_->Start(name_, "all_to_all", input.nbytes(), bytes * (size_ - 1));
    const Block block = BlocksOf(bytes);
    MPI_Request request;
    Check("all_to_all", MPI_Ialltoall(input.data_ptr(), block.count, block.type, output.data_ptr(), block.count,
                                      block.type, communicator_, &request));
    return Pending("all_to_all", ticket, {request}, [output, input] {});
  }

  Work Exchange(std::vector<PeerTransfer> transfers) override {
    int64_t bytes = 0, sent = 0;
    for (const PeerTransfer& t : transfers) {
      bytes += t.tensor.nbytes();
      if (t.direction == PeerTransfer::kSend) sent += t.tensor.nbytes();
    }
    const int64_t ticket = log_->Start(name_, "exchange", bytes, sent);
    std::vector<MPI_Request> requests;
    for (const PeerTransfer& t : transfers) {
      const Block block = BlocksOf(t.tensor.nbytes());
      MPI_Request request;
      Check("exchange",
            t.direction == PeerTransfer::kSend
                ? MPI_Isend(t.tensor.data_ptr(), block.count, block.type, t.peer, 0, communicator_, &request)
                : MPI_Irecv(t.tensor.data_ptr(), block.count, block.type, t.peer, 0, communicator_, &request));
      requests.push_back(request);
    }
    return Pending("exchange", ticket, std::move(requests), [transfers] {});
  }

  void Barrier() override {
    const int64_t ticket = log_->Start(name_, "barrier", 0, 0);
    MPI_Request request;
    Check("barrier", MPI_Ibarrier(communicator_, &request));
    Pending("barrier", ticket, {request}, [] {}).Wait();
  }

 private:
  void CheckSizes(const char* operation, int64_t a, int64_t b) const {
    TRIREME_CHECK(a == b, operation, " on group ", name_, ": sizes ", a, " and ", b, " do not fit");
  }

  void Check(const char* operation, int code) const {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    FailProcess(Error(ExitCode::kPeerLost, operation, " on group ", name_, " failed: ", std::string(text, length)));
  }

  // Polls: with more ranks than cores the others must get to run.
  void WaitFor(const char* operation, std::vector<MPI_Request> requests) const {
    int spins = 0, done = 0;
    while (true) {
      Check(operation, MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
      if (done != 0) return;
      if (++spins > 200) sched_yield();
    }
  }

  Work Pending(const char* operation, int64_t ticket, std::vector<MPI_Request> requests, std::function<void()> finish) {
    return Work([this, operation, ticket, requests = std::move(requests), finish = std::move(finish)] {
      log_->Wait(ticket);
      WaitFor(operation, requests);
      finish();
      log_->Finish(ticket);
    });
  }

  std::string name_;
  MPI_Comm communicator_;
  OperationLog* log_;
  int rank_ = 0, size_ = 1;
};

}  // namespace

std::shared_ptr<ProcessGroup> MakeMpiGroup(const std::string& name, MPI_Comm communicator, OperationLog* log) {
  return std::make_shared<MpiGroup>(name, communicator, log);
}

std::shared_ptr<ProcessGroup> MakeWorldGroup(OperationLog* log) {
  MPI_Comm world;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);
  int size = 0;
  MPI_Comm_size(world, &size);
  if (size > 1) return MakeMpiGroup("world", world, log);
  MPI_Comm_free(&world);
  return MakeSelfGroup("world");
}

}  // namespace trireme
