// A job whose ranks call collectives that do not match, for mismatch_test.py: MISMATCH FOLDER MODE [BYTES].
// With 2 ranks the mesh is data_shard 2, with 4 data_shard 2 x tensor 2. The odd ranks are those of data_shard 1,
// tensor 0: they do what MODE says (`none`: nothing odd; ends with code 0).
#include <ATen/ops/zeros.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "launch/base/log.h"
#include "launch/base/process.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/watchdog.h"

namespace trireme {
namespace {

constexpr double kWatchdogSeconds = 2;

at::Tensor Floats(int64_t n) { return at::zeros({n}, at::TensorOptions().dtype(at::kFloat)); }

struct Ranks {
  Mesh& mesh;
  ProcessGroup& shard;
  bool odd;
  int64_t numel;

  void Gather(int64_t n) { shard.AllGather(Floats(n * shard.size()), Floats(n)).Wait(); }
  void Scatter(int64_t n) { shard.ReduceScatter(Floats(n), Floats(n * shard.size())).Wait(); }
  void Sum(int64_t n) { shard.AllReduce(Floats(n), ReduceOp::kSum).Wait(); }
};

void Order(Ranks& r) {
  r.odd ? r.Scatter(r.numel) : r.Gather(r.numel);
  r.odd ? r.Gather(r.numel) : r.Scatter(r.numel);
}

// MPI's messages of both are of one size: nothing but the comparison would tell.
void Kind(Ranks& r) { r.odd ? r.Sum(r.numel) : r.Gather(r.numel); }

void Size(Ranks& r) { r.Gather(r.odd ? r.numel / 2 : r.numel); }

void Root(Ranks& r) { r.shard.Broadcast(Floats(r.numel), r.odd ? 1 : 0).Wait(); }

void Dtype(Ranks& r) {
  r.shard.AllReduce(r.odd ? Floats(r.numel).view(at::kInt) : Floats(r.numel), ReduceOp::kSum).Wait();
}

// Both wait for the same two collectives, one of them in parts, in different order.
void WaitOrder(Ranks& r) {
  const at::Tensor first = Floats(r.numel), second = Floats(r.numel);
  Work a = r.shard.AllReduce(first, ReduceOp::kSum), b = r.shard.AllReduce(second, ReduceOp::kMax);
  if (r.odd) b.Wait();
  a.Wait();
  r.Gather(r.numel);
}

void Skip(Ranks& r) {
  if (!r.odd) r.Gather(r.numel);
  r.mesh.log().BeginStep(3);
  r.Gather(r.numel);
}

void SkipLast(Ranks& r) {
  if (!r.odd) r.Gather(r.numel);
  while (r.odd) std::this_thread::sleep_for(std::chrono::seconds(1));
}

// No pair of ranks disagrees, but each waits for another in a ring: 0 for 1, 1 for 3, 3 for 2, 2 for 0.
void Cross(Ranks& r) {
  const bool tensor_first = r.mesh.coordinate(Axis::kDataShard) == r.mesh.coordinate(Axis::kTensor);
  const auto in_tensor = [&] { r.mesh.group({Axis::kTensor})->AllReduce(Floats(r.numel), ReduceOp::kSum).Wait(); };
  if (tensor_first) in_tensor();
  r.Sum(r.numel);
  if (!tensor_first) in_tensor();
}

// Each pair of ranks send each other a message; the odd rank expects another size.
void Exchange(Ranks& r) {
  const int peer = 1 - r.shard.rank();
  r.shard
      .Exchange({{PeerTransfer::kSend, Floats(r.numel), peer},
                 {PeerTransfer::kReceive, Floats(r.odd ? r.numel / 2 : r.numel), peer}})
      .Wait();
}
void ShortExchange(Ranks& r) {
  const int peer = 1 - r.shard.rank();
  r.shard
      .Exchange({{PeerTransfer::kSend, Floats(r.numel), peer},
                 {PeerTransfer::kReceive, Floats(r.odd ? r.numel * 2 : r.numel), peer}})
      .Wait();
}

const std::map<std::string, std::function<void(Ranks&)>> kModes = {{"none", [](Ranks&) {}},
                                                                   {"order", Order},
                                                                   {"kind", Kind},
                                                                   {"size", Size},
                                                                   {"root", Root},
                                                                   {"dtype", Dtype},
                                                                   {"wait_order", WaitOrder},
                                                                   {"skip", Skip},
                                                                   {"skip_last", SkipLast},
                                                                   {"cross", Cross},
                                                                   {"exchange", Exchange},
                                                                   {"short_exchange", ShortExchange}};

int Run(const std::string& folder, const std::string& mode, int64_t bytes) {
  absl::StatusOr<std::unique_ptr<Process>> process =
      Process::Start(/*expected_ranks=*/0, Process::Signals::kFinishStep);
  if (!process.ok()) FailProcess(process.status());
  MeshShape shape;
  shape[Axis::kDataShard] = 2;
  shape[Axis::kTensor] = (*process)->size() / 2;
  absl::StatusOr<std::unique_ptr<Mesh>> mesh = Mesh::Create(**process, shape, at::kCPU);
  if (!mesh.ok()) FailProcess(mesh.status());

  Watchdog::Options watching;
  watching.seconds = kWatchdogSeconds;
  watching.directory = folder + "/watchdog";
  watching.run_id = BroadcastBytes((*mesh)->control(), absl::StrCat(static_cast<int64_t>(MonotonicSeconds() * 1e6)));
  watching.rank = (*process)->rank();
  watching.world_size = (*process)->size();
  watching.host = (*process)->host();
  const Watchdog watchdog(&(*mesh)->log(), watching);

  Ranks ranks{**mesh, *(*mesh)->group({Axis::kDataShard}),
              (*mesh)->coordinate(Axis::kDataShard) == 1 && (*mesh)->coordinate(Axis::kTensor) == 0,
              bytes / static_cast<int64_t>(sizeof(float))};
  const std::shared_ptr<ProcessGroup> tensor = (*mesh)->group({Axis::kTensor});
  for (int64_t step = 1; step <= 2; ++step) {
    (*mesh)->log().BeginStep(step);
    ranks.Gather(ranks.numel);
    ranks.Scatter(ranks.numel);
    tensor->AllReduce(Floats(ranks.numel), ReduceOp::kSum).Wait();
    ranks.Sum(ranks.numel);
  }
  kModes.at(mode)(ranks);
  (*mesh)->control().Barrier();
  Info("ended in peace");
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  if (argc < 3 || !trireme::kModes.contains(argv[2])) {
    std::fprintf(stderr, "usage: mismatch_job FOLDER MODE [BYTES]\n");
    return 2;
  }
  return trireme::Run(argv[1], argv[2], argc > 3 ? std::atoll(argv[3]) : 64);
}
