// NCCL groups: what each operation delivers, and that nothing changes when communication streams are delayed at random,
// which shows every missing wait between streams. Run under mpirun with any number of ranks; ranks that share a GPU
// need an NCCL_HOSTID each.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <stdlib.h>

#include "kernels/base/device.h"
#include "parallel/comm/nccl_group.h"
#include "tests/parallel/multi_rank.h"

namespace trireme {
namespace {

std::string MissingGpu() {
  const absl::StatusOr<int> count = CudaDeviceCount();
  if (!count.ok()) return std::string(count.status().message());
  return *count > 0 ? "" : "no GPU on this machine, or a build without CUDA";
}

class NcclGroups : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = MissingGpu(); !reason.empty()) GTEST_SKIP() << reason;
    device_ = UseCudaDevice(TestProcess().local_rank()).value();
  }
  std::shared_ptr<ProcessGroup> Group(const std::string& name) {
    MPI_Comm communicator;
    MPI_Comm_dup(MPI_COMM_WORLD, &communicator);
    return MakeNcclGroup(name, communicator, TestProcess().local_rank(), &log_);
  }
  at::TensorOptions Options(at::ScalarType dtype) const { return at::TensorOptions().dtype(dtype).device(device_); }
  at::Tensor Full(int64_t n, double value, at::ScalarType dtype) const { return at::full({n}, value, Options(dtype)); }

  at::Device device_{at::kCPU};
  OperationLog log_;
};

TEST_F(NcclGroups, OperationsDeliver) {
  const std::shared_ptr<ProcessGroup> group = Group("all");
  const int rank = group->rank(), size = group->size(), next = (rank + 1) % size, last = (rank + size - 1) % size;
  const int64_t n = 1000;
  for (const at::ScalarType dtype :
       {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kInt, at::kLong, at::kByte}) {
    at::Tensor gathered = at::empty({size * n}, Options(dtype)), received = at::empty({n}, Options(dtype)),
               summed = Full(n, rank + 1, dtype);
    at::Tensor largest = Full(n, rank + 1, dtype), root = Full(n, rank, dtype),
               exchanged = at::empty({size * n}, Options(dtype));
    at::Tensor part = at::empty({n}, Options(dtype));
    group->AllGather(gathered, Full(n, rank, dtype)).Wait();
    group->AllReduce(summed, ReduceOp::kSum).Wait();
    group->AllReduce(largest, ReduceOp::kMax).Wait();
    group->Broadcast(root, size - 1).Wait();
    group->ReduceScatter(part, gathered).Wait();
    group->AllToAll(exchanged, gathered).Wait();
    group->Exchange({{PeerTransfer::kSend, Full(n, rank, dtype), next}, {PeerTransfer::kReceive, received, last}})
        .Wait();
    for (int r = 0; r < size; ++r)
      EXPECT_TRUE(at::equal(gathered.narrow(0, r * n, n), Full(n, r, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(summed, Full(n, size * (size + 1) / 2, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(largest, Full(n, size, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(root, Full(n, size - 1, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(part, Full(n, rank * size, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(exchanged, Full(size * n, rank, dtype))) << c10::toString(dtype);
    EXPECT_TRUE(at::equal(received, Full(n, last, dtype))) << c10::toString(dtype);
  }
  group->Barrier();
}

TEST_F(NcclGroups, ReduceScatterOfBfloat16AddsInFloat32) {
  const std::shared_ptr<ProcessGroup> group = Group("all");
  const int64_t n = 512;
  at::Tensor input = Full(group->size() * n, group->rank() == 0 ? 1.0 : 1.0 / 512, at::kBFloat16),
             output = at::empty({n}, Options(at::kFloat));
  group->ReduceScatter(output, input).Wait();  // In bfloat16 the small addends would vanish.
  EXPECT_TRUE(at::equal(output, Full(n, 1.0 + (group->size() - 1) / 512.0, at::kFloat)));
}

TEST_F(NcclGroups, LogSeesOperationsEnd) {
  const std::shared_ptr<ProcessGroup> group = Group("all");
  at::Tensor x = Full(8, 1, at::kFloat);
  group->AllReduce(x, ReduceOp::kSum).Wait();
  group->Barrier();
  const auto counts = log_.counts();
  EXPECT_EQ(counts.at({"all", "all_reduce"}).calls, 1);
  EXPECT_EQ(counts.at({"all", "barrier"}).calls, 1);
  EXPECT_NE(log_.Describe(5).find("in no communication"), std::string::npos) << log_.Describe(5);
}

// Sharded training in miniature, with whole numbers so that every result is exact: gather the next slab while the
// current one is used, reduce the gradients behind, free and reuse memory at once. Returns this rank's shard.
at::Tensor ShardedSteps(ProcessGroup& gather, ProcessGroup& reduce, const at::TensorOptions& options) {
  constexpr int kSteps = 12, kLayers = 3;
  const int64_t n = 40000;
  const int size = gather.size();
  std::vector<at::Tensor> shards, slabs;
  for (int layer = 0; layer < kLayers; ++layer) {
    shards.push_back(at::arange(n, options).remainder(13) + static_cast<double>(gather.rank() + layer));
    slabs.push_back(at::empty({size * n}, options));
  }
  for (int step = 0; step < kSteps; ++step) {
    Work pending = gather.AllGather(slabs[0], shards[0]);
    std::vector<at::Tensor> gradient_shards(kLayers);
    std::vector<Work> reductions(kLayers);
    at::Tensor activation = at::full({size * n}, 1.0, options);
    for (int layer = 0; layer < kLayers; ++layer) {
      pending.Wait();
      if (layer + 1 < kLayers) pending = gather.AllGather(slabs[layer + 1], shards[layer + 1]);
      activation = (activation + slabs[layer]).remainder(97);
      gradient_shards[layer] = at::empty({n}, options);
      reductions[layer] = reduce.ReduceScatter(gradient_shards[layer], activation + static_cast<double>(reduce.rank()));
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      reductions[layer].Wait();
      shards[layer] = (shards[layer] + gradient_shards[layer]).remainder(101);
      slabs[layer].fill_(-1);  // As memory is used again.
    }
  }
  return shards[0] + shards[1] * 101 + shards[2] * 10201;
}

TEST_F(NcclGroups, RandomDelaysChangeNothing) {
  const at::TensorOptions options = Options(at::kDouble);
  unsetenv("TRIREME_TEST_DELAY_STREAMS");
  const at::Tensor plain = ShardedSteps(*Group("gather"), *Group("reduce"), options).cpu();
  EXPECT_GT(plain.max().item<double>(), 0);
  for (const char* seed : {"1", "2", "3"}) {
    setenv("TRIREME_TEST_DELAY_STREAMS", seed, 1);
    EXPECT_TRUE(at::equal(ShardedSteps(*Group("gather"), *Group("reduce"), options).cpu(), plain)) << "seed " << seed;
  }
  unsetenv("TRIREME_TEST_DELAY_STREAMS");
}

}  // namespace
}  // namespace trireme
