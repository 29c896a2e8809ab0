#include "parallel/comm/nccl_group.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <thread>

#include "kernels/base/philox.h"
#include "kernels/cuda/launchers.h"
#include "launch/base/exception.h"
#include "launch/base/log.h"
#include "launch/base/process.h"
#include "launch/base/status.h"

namespace trireme {
namespace {

constexpr double kConnectSeconds = 600;  // For a peer to answer; the first operation between two ranks connects them.
constexpr double kFinalizeSeconds = 30;
constexpr auto kWatchInterval = std::chrono::milliseconds(100);
constexpr int64_t kMaxDelayNanoseconds = 2'000'000;

void CheckCuda(cudaError_t error, const char* call) {
  TRIREME_CHECK(error == cudaSuccess, call, ": ", cudaGetErrorString(error));
}

// A point in a stream's work.
class Event {
 public:
  Event() { CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void Record(cudaStream_t stream) { CheckCuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  void BlockStream(cudaStream_t stream) const {
    CheckCuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  }
  bool Reached() const {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();  // Not an error, but it would be taken for one of the next launch.
      return false;
    }
    CheckCuda(error, "cudaEventQuery");
    return true;
  }

 private:
  cudaEvent_t event_;
};

ncclDataType_t NcclType(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kHalf:
      return ncclFloat16;
    case at::kInt:
      return ncclInt32;
    case at::kLong:
      return ncclInt64;
    case at::kByte:
      return ncclUint8;
    case at::kChar:
      return ncclInt8;
    default:
      TRIREME_CHECK(false, "NCCL cannot reduce ", c10::toString(dtype));
  }
}

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(const std::string& name, MPI_Comm communicator, int device_index, OperationLog* log)
      : name_(name),
        log_(log),
        device_(static_cast<c10::DeviceIndex>(device_index % std::max<int>(1, c10::cuda::device_count()))) {
    MPI_Comm_rank(communicator, &rank_);
    MPI_Comm_size(communicator, &size_);
    const c10::cuda::CUDAGuard guard(device_);
    begin_ = std::make_unique<Event>();
    int least = 0, greatest = 0;
    CheckCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    CheckCuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreateWithPriority");
    Connect(communicator);
    MPI_Comm_free(&communicator);
    if (const char* seed = std::getenv("TRIREME_TEST_DELAY_STREAMS"); seed != nullptr) {
      delays_.seed(std::strtoull(seed, nullptr, 10) * 1000 + static_cast<uint64_t>(rank_) + StableId(name.c_str()));
      delayed_ = true;
    }
    barrier_ = at::zeros({1}, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA, device_));
    watcher_ = std::thread([this] { FailOnException([this] { Watch(); }, &FailProcess); });
  }

  ~NcclGroup() override {
    {
      std::lock_guard<std::mutex> lock(pending_mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    watcher_.join();
    // Finalizing waits for peers: they would not learn of an exception here.
    if (std::uncaught_exceptions() > 0) return;
    const c10::cuda::CUDAGuard guard(device_);
    if (Settled(Locked([&] { return ncclCommFinalize(comm_); }), kFinalizeSeconds) == ncclSuccess) {
      ncclCommDestroy(comm_);
    } else {
      ncclCommAbort(comm_);
    }
    cudaStreamDestroy(stream_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  Work AllGather(at::Tensor output, at::Tensor input) override {
    CheckSizes("all_gather", output.numel(), input.numel() * size_);
    const int64_t bytes = static_cast<int64_t>(input.nbytes());
    return Start("all_gather", bytes * size_, bytes * (size_ - 1), {output, input}, [&] {
      return ncclAllGather(input.data_ptr(), output.data_ptr(), static_cast<size_t>(bytes), ncclUint8, comm_, stream_);
    });
  }

  Work ReduceScatter(at::Tensor output, at::Tensor input) override {
    CheckSizes("reduce_scatter", input.numel(), output.numel() * size_);
    const int64_t bytes = static_cast<int64_t>(input.nbytes());
    if (input.scalar_type() == output.scalar_type()) {
      return Start("reduce_scatter", bytes, bytes / size_ * (size_ - 1), {output, input}, [&] {
        return ncclReduceScatter(input.data_ptr(), output.data_ptr(), static_cast<size_t>(output.numel()),
                                 NcclType(output.scalar_type()), ncclSum, comm_, stream_);
      });
    }
    // NCCL would add in the input's type. So the parts travel as they are and are added here, in the output's.
    const at::Tensor parts = at::empty({size_, output.numel()}, input.options());
    return Start(
        "reduce_scatter", bytes, bytes / size_ * (size_ - 1), {output, input, parts},
        [&] { return SendParts(input, parts); },
        [&] {
          const c10::cuda::CUDAStreamGuard on_stream(c10::cuda::getStreamFromExternal(stream_, device_));
          at::Tensor sum = output.view({-1});
          at::sum_out(sum, parts, {0}, /*keepdim=*/false, output.scalar_type());
        });
  }

  Work AllReduce(at::Tensor tensor, ReduceOp op) override { return Reduce("all_reduce", tensor, op); }

  Work Broadcast(at::Tensor tensor, int root) override {
    const int64_t bytes = static_cast<int64_t>(tensor.nbytes());
    return Start("broadcast", bytes, rank_ == root ? bytes : 0, {tensor}, [&] {
      return ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), static_cast<size_t>(bytes), ncclUint8, root, comm_,
                           stream_);
    });
  }

  Work AllToAll(at::Tensor output, at::Tensor input) override {
    CheckSizes("all_to_all", output.numel(), input.numel());
    const int64_t part = static_cast<int64_t>(input.nbytes()) / size_;
    return Start("all_to_all", part * size_, part * (size_ - 1), {output, input},
                 [&] { return SendParts(input, output); });
  }

  Work Exchange(std::vector<PeerTransfer> transfers) override {
    int64_t bytes = 0, sent = 0;
    std::vector<at::Tensor> tensors;
    for (const PeerTransfer& t : transfers) {
      bytes += static_cast<int64_t>(t.tensor.nbytes());
      if (t.direction == PeerTransfer::kSend) sent += static_cast<int64_t>(t.tensor.nbytes());
      tensors.push_back(t.tensor);
    }
    return Start("exchange", bytes, sent, std::move(tensors), [&] {
      return Grouped([&](auto add) {
        for (const PeerTransfer& t : transfers) {
          add(t.direction == PeerTransfer::kSend
                  ? ncclSend(t.tensor.data_ptr(), t.tensor.nbytes(), ncclUint8, t.peer, comm_, stream_)
                  : ncclRecv(t.tensor.data_ptr(), t.tensor.nbytes(), ncclUint8, t.peer, comm_, stream_));
        }
      });
    });
  }

  void Barrier() override {
    Reduce("barrier", barrier_, ReduceOp::kSum).Wait();
    CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    ObserveFinished();
  }

 private:
  struct Pending {
    std::shared_ptr<Event> done;
    int64_t ticket;
    std::string description;  // "all_gather #12 (3.1 MB)"
  };

  void Connect(MPI_Comm communicator) {
    ncclUniqueId id = {};
    ncclResult_t result = rank_ == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
    if (result == ncclSuccess && MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, communicator) != MPI_SUCCESS)
      result = ncclSystemError;
    if (result != ncclSuccess) Fail("connecting", result);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    result = Settled(ncclCommInitRankConfig(&comm_, size_, id, rank_, &config), kConnectSeconds);
    if (result != ncclSuccess) Fail("connecting", result);
  }

  void CheckSizes(const char* operation, int64_t a, int64_t b) const {
    TRIREME_CHECK(a == b, operation, " on group ", name_, ": sizes ", a, " and ", b, " do not fit");
  }

  Work Reduce(const char* operation, at::Tensor tensor, ReduceOp op) {
    const int64_t bytes = static_cast<int64_t>(tensor.nbytes());
    return Start(operation, bytes, 2 * bytes * (size_ - 1) / size_, {tensor}, [&] {
      return ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), static_cast<size_t>(tensor.numel()),
                           NcclType(tensor.scalar_type()), op == ReduceOp::kMax ? ncclMax : ncclSum, comm_, stream_);
    });
  }

  // Sends and receives as one operation. `body` is given a function that takes each one's result.
  template <typename Body>
  static ncclResult_t Grouped(Body body) {
    ncclResult_t first_error = ncclGroupStart();
    body([&](ncclResult_t result) {
      if (first_error == ncclSuccess && result != ncclInProgress) first_error = result;
    });
    const ncclResult_t end = ncclGroupEnd();
    return first_error == ncclSuccess ? end : first_error;
  }

  // Part r of `from` to rank r; what rank r sends becomes part r of `to`. For `launch` of Start().
  ncclResult_t SendParts(const at::Tensor& from, const at::Tensor& to) {
    const auto part = static_cast<size_t>(from.nbytes()) / static_cast<size_t>(size_);
    return Grouped([&](auto add) {
      for (int peer = 0; peer < size_; ++peer) {
        const size_t begin = static_cast<size_t>(peer) * part;
        add(ncclSend(static_cast<const char*>(from.data_ptr()) + begin, part, ncclUint8, peer, comm_, stream_));
        add(ncclRecv(static_cast<char*>(to.data_ptr()) + begin, part, ncclUint8, peer, comm_, stream_));
      }
    });
  }

  // Enqueues an operation: `launch` calls NCCL on stream_, `after` adds to it there. Returns when it is enqueued.
  template <typename Launch>
  Work Start(const char* operation, int64_t bytes, int64_t sent_bytes, std::vector<at::Tensor> tensors, Launch launch,
             const std::function<void()>& after = nullptr) {
    for (const at::Tensor& tensor : tensors) {
      TRIREME_CHECK(tensor.is_cuda() && tensor.get_device() == device_ && tensor.is_contiguous(), operation,
                    " on group ", name_, " needs contiguous tensors on GPU ", static_cast<int>(device_));
    }
    const c10::cuda::CUDAGuard guard(device_);
    ObserveFinished();
    const int64_t ticket = log_->Start(name_, operation, bytes, sent_bytes);
    const std::string description =
        absl::StrCat(operation, " #", ++sequence_, " (", HumanBytes(static_cast<double>(bytes)), ")");
    const cudaStream_t current = c10::cuda::getCurrentCUDAStream(device_).stream();
    // What computes the input may be late, too.
    if (delayed_ && delays_() % 4 == 0)
      cuda::LaunchSpin(static_cast<int64_t>(delays_() % kMaxDelayNanoseconds), current);
    begin_->Record(current);
    begin_->BlockStream(stream_);
    if (delayed_) cuda::LaunchSpin(static_cast<int64_t>(delays_() % kMaxDelayNanoseconds), stream_);
    const ncclResult_t result = Settled(Locked(launch), kConnectSeconds);
    if (result != ncclSuccess) Fail(description, result);
    if (after) after();
    auto done = std::make_shared<Event>();
    done->Record(stream_);
    {
      std::lock_guard<std::mutex> lock(pending_mutex_);
      pending_.push_back({done, ticket, description});
    }
    const auto wait = [done, device = device_, tensors = std::move(tensors)] {
      done->BlockStream(c10::cuda::getCurrentCUDAStream(device).stream());
    };
    return Work(wait, [done] { return done->Reached(); });
  }

  template <typename Call>
  ncclResult_t Locked(Call call) {
    std::lock_guard<std::mutex> lock(nccl_mutex_);
    return call();
  }

  // NCCL works on in the background after ncclInProgress; only then is the operation in the stream. ncclInProgress
  // again: out of time.
  ncclResult_t Settled(ncclResult_t result, double seconds) {
    const double deadline = MonotonicSeconds() + seconds;
    for (int polls = 0; result == ncclInProgress && MonotonicSeconds() < deadline; ++polls) {
      if (polls < 1000) {
        sched_yield();
      } else {
        usleep(50);
      }
      result = AsyncState();
    }
    return result;
  }

  ncclResult_t AsyncState() {
    return Locked([&] {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t query = ncclCommGetAsyncError(comm_, &state);
      return query == ncclSuccess ? state : query;
    });
  }

  // Reports operations that ended to the log. Any thread.
  void ObserveFinished() {
    std::lock_guard<std::mutex> lock(pending_mutex_);
    while (!pending_.empty() && pending_.front().done->Reached()) {
      log_->Finish(pending_.front().ticket);
      pending_.pop_front();
    }
  }

  void Watch() {
    c10::cuda::set_device(device_);
    std::unique_lock<std::mutex> lock(pending_mutex_);
    while (!wake_.wait_for(lock, kWatchInterval, [&] { return stop_; })) {
      lock.unlock();
      ObserveFinished();
      const ncclResult_t state = AsyncState();
      lock.lock();
      if (state == ncclSuccess || state == ncclInProgress) continue;
      const std::string what = pending_.empty() ? "between operations" : pending_.front().description;
      lock.unlock();
      Fail(what, state);
    }
  }

  [[noreturn]] void Fail(const std::string& what, ncclResult_t result) {
    while (failing_.exchange(true)) sleep(1);  // Another thread ends the process.
    const std::string reason = result == ncclInProgress
                                   ? absl::StrCat("a peer did not answer within ", kConnectSeconds, " s")
                                   : std::string(ncclGetErrorString(result));
    const char* detail = ncclGetLastError(comm_);
    // The communicator is not aborted: its kernels would return, and other threads go on with what they left. Peers see
    // this process's connections close.
    FailProcess(Error(ExitCode::kPeerLost, "NCCL: ", what, " on group ", name_, ", rank ", rank_, " of ", size_, ": ",
                      reason, detail == nullptr || *detail == '\0' ? "" : " (", detail == nullptr ? "" : detail,
                      detail == nullptr || *detail == '\0' ? "" : ")",
                      "; if another rank failed first, its message is the cause; NCCL_DEBUG=INFO shows more"));
  }

  std::string name_;
  OperationLog* log_;
  c10::DeviceIndex device_;
  int rank_ = 0, size_ = 1;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Event> begin_;  // Where the current stream was when the last operation was called.
  at::Tensor barrier_;            // [1]
  int64_t sequence_ = 0;
  bool delayed_ = false;
  std::mt19937_64 delays_;
  std::mutex nccl_mutex_;     // One NCCL call at a time: asking for the state also completes background work.
  std::mutex pending_mutex_;  // Guards pending_ and stop_.
  std::condition_variable wake_;
  std::deque<Pending> pending_;  // In stream order.
  bool stop_ = false;
  std::atomic<bool> failing_{false};
  std::thread watcher_;
};

}  // namespace

std::shared_ptr<ProcessGroup> MakeNcclGroup(const std::string& name, MPI_Comm communicator, int device_index,
                                            OperationLog* log) {
  return std::make_shared<NcclGroup>(name, communicator, device_index, log);
}

}  // namespace trireme
