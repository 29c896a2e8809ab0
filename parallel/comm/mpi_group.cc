#include "parallel/comm/mpi_group.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <sched.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/base/ops.h"
#include "launch/base/log.h"
#include "launch/base/process.h"
#include "launch/base/status.h"
#include "parallel/comm/collective_call.h"

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

constexpr int kExchangeTag = 0, kCallTag = 1;
constexpr double kOtherReportSeconds = 1;  // from an error of MPI's to the exit: a rank that knows more tells first

// This rank's call on its way to the right neighbour, and the left neighbour's as it comes.
struct Comparison {
  CollectiveCall own, left;
  int64_t number = 0;  // of this collective within the group
  MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  bool done = false;
};

class MpiGroup final : public ProcessGroup {
 public:
  MpiGroup(const std::string& name, MPI_Comm communicator, OperationLog* log)
      : name_(name), communicator_(communicator), log_(log) {
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
    MPI_Group own, world;
    MPI_Comm_group(communicator_, &own);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    std::vector<int> all(size_);
    std::iota(all.begin(), all.end(), 0);
    members_.resize(size_);
    MPI_Group_translate_ranks(own, size_, all.data(), world, members_.data());
    MPI_Group_free(&own);
    MPI_Group_free(&world);
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
    const auto comparison = Announce(CollectiveCall::kAllGather, bytes * size_, input.scalar_type());
    const Block block = BlocksOf(bytes);
    char* own = static_cast<char*>(output.data_ptr()) + rank_ * bytes;
    const void* source = own == input.data_ptr() ? MPI_IN_PLACE : input.data_ptr();
    MPI_Request request;
    Check("all_gather", MPI_Iallgather(source, block.count, block.type, output.data_ptr(), block.count, block.type,
                                       communicator_, &request));
    return Pending(ticket, comparison, request, [output, input] {});
  }

  Work ReduceScatter(at::Tensor output, at::Tensor input) override {
    CheckSizes("reduce_scatter", input.numel(), output.numel() * size_);
    const int64_t bytes = input.nbytes() / size_;
    const int64_t ticket = log_->Start(name_, "reduce_scatter", input.nbytes(), bytes * (size_ - 1));
    const auto comparison = Announce(CollectiveCall::kReduceScatter, input.nbytes(), input.scalar_type());
    at::Tensor parts = at::empty({size_, output.numel()}, input.options());
    const Block block = BlocksOf(bytes);
    MPI_Request request;
    Check("reduce_scatter", MPI_Ialltoall(input.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                          block.type, communicator_, &request));
    return Pending(ticket, comparison, request,
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
    const auto comparison =
        Announce(CollectiveCall::kAllReduce, tensor.nbytes(), tensor.scalar_type(), static_cast<int>(op));
    MPI_Request request;
    if (small) {
      at::Tensor parts = at::empty({size_, n}, tensor.options());
      const Block block = BlocksOf(tensor.nbytes());
      Check("all_reduce", MPI_Iallgather(tensor.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                         block.type, communicator_, &request));
      return Pending(ticket, comparison, request, [tensor, parts, op] { ReduceParts(parts, op, tensor.view({-1})); });
    }
    // Every rank reduces its part, then all parts are gathered: twice the data once, whatever the number of ranks.
    at::Tensor padded = at::zeros({size_ * part}, tensor.options());
    padded.narrow(0, 0, n).copy_(tensor.view({-1}));
    at::Tensor parts = at::empty({size_, part}, tensor.options());
    const Block block = BlocksOf(part * static_cast<int64_t>(tensor.element_size()));
    Check("all_reduce", MPI_Ialltoall(padded.data_ptr(), block.count, block.type, parts.data_ptr(), block.count,
                                      block.type, communicator_, &request));
    return Pending(ticket, comparison, request, [=, this, number = comparison->number]() mutable {
      at::Tensor own = padded.narrow(0, rank_ * part, part);
      ReduceParts(parts, op, own);
      const auto end =
          Announce(CollectiveCall::kAllReduceEnd, tensor.nbytes(), tensor.scalar_type(), static_cast<int>(number));
      MPI_Request gather;
      Check("all_reduce", MPI_Iallgather(MPI_IN_PLACE, block.count, block.type, padded.data_ptr(), block.count,
                                         block.type, communicator_, &gather));
      WaitFor(gather, *end);
      tensor.view({-1}).copy_(padded.narrow(0, 0, n));
    });
  }

  Work Broadcast(at::Tensor tensor, int root) override {
    const int64_t ticket = log_->Start(name_, "broadcast", tensor.nbytes(), rank_ == root ? tensor.nbytes() : 0);
    const auto comparison = Announce(CollectiveCall::kBroadcast, tensor.nbytes(), tensor.scalar_type(), root);
    const Block block = BlocksOf(tensor.nbytes());
    MPI_Request request;
    Check("broadcast", MPI_Ibcast(tensor.data_ptr(), block.count, block.type, root, communicator_, &request));
    return Pending(ticket, comparison, request, [tensor] {});
  }

  Work AllToAll(at::Tensor output, at::Tensor input) override {
    CheckSizes("all_to_all", output.numel(), input.numel());
    const int64_t bytes = input.nbytes() / size_;
    const int64_t ticket = log_->Start(name_, "all_to_all", input.nbytes(), bytes * (size_ - 1));
    const auto comparison = Announce(CollectiveCall::kAllToAll, input.nbytes(), input.scalar_type());
    const Block block = BlocksOf(bytes);
    MPI_Request request;
    Check("all_to_all", MPI_Ialltoall(input.data_ptr(), block.count, block.type, output.data_ptr(), block.count,
                                      block.type, communicator_, &request));
    return Pending(ticket, comparison, request, [output, input] {});
  }

  Work Exchange(std::vector<PeerTransfer> transfers) override {
    int64_t bytes = 0, sent = 0;
    for (const PeerTransfer& t : transfers) {
      bytes += t.tensor.nbytes();
      if (t.direction == PeerTransfer::kSend) sent += t.tensor.nbytes();
    }
    const int64_t ticket = log_->Start(name_, "exchange", bytes, sent);
    auto requests = std::make_shared<std::vector<MPI_Request>>();
    for (const PeerTransfer& t : transfers) {
      const Block block = BlocksOf(t.tensor.nbytes());
      MPI_Request request;
      Check("exchange", t.direction == PeerTransfer::kSend ? MPI_Isend(t.tensor.data_ptr(), block.count, block.type,
                                                                       t.peer, kExchangeTag, communicator_, &request)
                                                           : MPI_Irecv(t.tensor.data_ptr(), block.count, block.type,
                                                                       t.peer, kExchangeTag, communicator_, &request));
      requests->push_back(request);
    }
    const auto wait = [this, ticket, requests, transfers = std::move(transfers)]() mutable {
      log_->Wait(ticket);
      WaitForTransfers(*requests, transfers);
      log_->Finish(ticket);
    };
    return Work(wait, [requests] {
      return std::all_of(requests->begin(), requests->end(), [](MPI_Request request) {
        int done = 0;
        MPI_Request_get_status(request, &done, MPI_STATUS_IGNORE);
        return done != 0;
      });
    });
  }

  void Barrier() override {
    const int64_t ticket = log_->Start(name_, "barrier", 0, 0);
    const auto comparison = Announce(CollectiveCall::kBarrier, 0, at::kByte);
    MPI_Request request;
    Check("barrier", MPI_Ibarrier(communicator_, &request));
    Pending(ticket, comparison, request, [] {}).Wait();
  }

 private:
  void CheckSizes(const char* operation, int64_t a, int64_t b) const {
    TRIREME_CHECK(a == b, operation, " on group ", name_, ": sizes ", a, " and ", b, " do not fit");
  }

  [[noreturn]] void Fail(const char* operation, int code) const {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    FailProcess(Error(ExitCode::kPeerLost, operation, " on group ", name_, " failed: ", std::string(text, length), "\n",
                      Lately()));
  }
  void Check(const char* operation, int code) const {
    if (code != MPI_SUCCESS) Fail(operation, code);
  }
  std::string Lately() const { return absl::StrCat("rank ", members_[rank_], " lately: ", log_->Describe(8)); }

  std::shared_ptr<Comparison> Announce(CollectiveCall::Operation operation, int64_t bytes, at::ScalarType dtype,
                                       int variant = 0) {
    auto comparison = std::make_shared<Comparison>();
    comparison->own = {operation, dtype, variant, bytes, log_->step()};
    if (operation != CollectiveCall::kAllReduceEnd) ++collectives_;
    comparison->number = collectives_;
    constexpr int kBytes = sizeof(CollectiveCall);
    const int left = (rank_ + size_ - 1) % size_, right = (rank_ + 1) % size_;
    Check(comparison->own.name(),
          MPI_Irecv(&comparison->left, kBytes, MPI_BYTE, left, kCallTag, communicator_, &comparison->requests[0]));
    Check(comparison->own.name(),
          MPI_Isend(&comparison->own, kBytes, MPI_BYTE, right, kCallTag, communicator_, &comparison->requests[1]));
    return comparison;
  }

  // Ends the process when the left neighbour made another call; does nothing while its call has not come.
  void Compare(Comparison& comparison) const {
    int done = 0;
    Check(comparison.own.name(), MPI_Testall(2, comparison.requests, &done, MPI_STATUSES_IGNORE));
    comparison.done = done != 0;
    if (done == 0 || comparison.own == comparison.left) return;
    FailProcess(Error(ExitCode::kPeerLost, "ranks called different collectives as #", comparison.number, " of group ",
                      name_, ": rank ", members_[(rank_ + size_ - 1) % size_], ": ", comparison.left.ToString(),
                      "; rank ", members_[rank_], ": ", comparison.own.ToString(), "\n", Lately()));
  }

  // With more ranks than cores the others must get to run.
  static void Yield(int* spins) {
    if (++*spins > 200) sched_yield();
  }

  // Until `request` is done and its call is known to be the left neighbour's too.
  void WaitFor(MPI_Request request, Comparison& comparison) const {
    int spins = 0, done = 0;
    while (done == 0 || !comparison.done) {
      if (!comparison.done) Compare(comparison);
      if (done == 0) {
        const int code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) FailCollective(code, comparison);
      }
      Yield(&spins);
    }
  }

  // MPI stumbles over calls that do not match, too, and the comparison says more about them.
  [[noreturn]] void FailCollective(int code, Comparison& comparison) const {
    const double begin = MonotonicSeconds();
    while (MonotonicSeconds() - begin < kOtherReportSeconds) {
      if (!comparison.done) Compare(comparison);
      sched_yield();
    }
    Fail(comparison.own.name(), code);
  }

  void WaitForTransfers(std::vector<MPI_Request>& requests, const std::vector<PeerTransfer>& transfers) const {
    std::vector<MPI_Status> statuses(requests.size());
    int spins = 0, done = 0, code = MPI_SUCCESS;
    while (done == 0 && code == MPI_SUCCESS) {
      code = MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, statuses.data());
      Yield(&spins);
    }
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) Fail("exchange", code);
    for (size_t i = 0; i < transfers.size(); ++i) {
      // MPI sets a status's error only where it says that there is one.
      const int error = code == MPI_SUCCESS ? MPI_SUCCESS : statuses[i].MPI_ERROR;
      if (error == MPI_ERR_PENDING) continue;
      int error_class = MPI_SUCCESS;
      MPI_Error_class(error, &error_class);
      if (error_class == MPI_ERR_TRUNCATE) FailReceive(transfers[i], "more");
      if (error != MPI_SUCCESS) Fail("exchange", error);
      if (transfers[i].direction == PeerTransfer::kSend) continue;
      MPI_Count bytes = 0;
      MPI_Get_elements_x(&statuses[i], MPI_BYTE, &bytes);
      if (bytes != static_cast<MPI_Count>(transfers[i].tensor.nbytes()))
        FailReceive(transfers[i], absl::StrCat(bytes, " B"));
    }
  }

  [[noreturn]] void FailReceive(const PeerTransfer& transfer, const std::string& came) const {
    FailProcess(Error(ExitCode::kPeerLost, "exchange on group ", name_, " in step ", log_->step(), ": rank ",
                      members_[rank_], " expects ", transfer.tensor.nbytes(), " B from rank ", members_[transfer.peer],
                      ", which sends ", came, "\n", Lately()));
  }

  Work Pending(int64_t ticket, std::shared_ptr<Comparison> comparison, MPI_Request request,
               std::function<void()> finish) {
    return Work([this, ticket, comparison = std::move(comparison), request, finish = std::move(finish)] {
      log_->Wait(ticket);
      WaitFor(request, *comparison);
      finish();
      log_->Finish(ticket);
    });
  }

  std::string name_;
  MPI_Comm communicator_;
  OperationLog* log_;
  int rank_ = 0, size_ = 1;
  std::vector<int> members_;  // ranks in the job
  int64_t collectives_ = 0;   // started
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
