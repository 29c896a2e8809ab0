// Collectives over MPI against values worked out in plain loops, and the groups of a mesh.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <type_traits>

#include "parallel/comm/mesh.h"
#include "parallel/comm/mpi_group.h"
#include "tests/parallel/multi_rank.h"

namespace trireme {
namespace {

// Element i of rank r's tensor. Floating point values differ in magnitude, so that the order of a sum shows in its
// bits; integers stay small enough that no sum over four ranks overflows a byte.
template <typename T>
T Value(int rank, int64_t i) {
  const int64_t mixed = ((i + 1) * 2654435761 + rank * 40503 + 12345) % 65521;
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(mixed % 61);
  } else {
    static constexpr float kScale[] = {1.0f, 1e-3f, 30.0f, 1e-2f, 0.3f};
    return static_cast<T>((static_cast<float>(mixed) / 65521.0f - 0.5f) * kScale[(mixed + rank) % 5]);
  }
}

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, std::conditional_t<std::is_integral_v<T>, T, float>>;

// The sum over ranks 0, 1, ... of element i, accumulated in float (double for double) and rounded once.
template <typename T>
Wide<T> WideSum(int ranks, int64_t i) {
  Wide<T> sum = static_cast<Wide<T>>(Value<T>(0, i));
  for (int rank = 1; rank < ranks; ++rank) sum += static_cast<Wide<T>>(Value<T>(rank, i));
  return sum;
}

template <typename T>
T Largest(int ranks, int64_t i) {
  T largest = Value<T>(0, i);
  for (int rank = 1; rank < ranks; ++rank) {
    if (Value<T>(rank, i) > largest) largest = Value<T>(rank, i);
  }
  return largest;
}

template <typename T>
at::ScalarType TypeOf() {
  return c10::CppTypeToScalarType<T>::value;
}

template <typename T>
at::Tensor Made(int64_t n, const std::function<T(int64_t)>& value) {
  at::Tensor tensor = at::empty({n}, at::TensorOptions().dtype(TypeOf<T>()));
  T* data = tensor.mutable_data_ptr<T>();
  for (int64_t i = 0; i < n; ++i) data[i] = value(i);
  return tensor;
}

template <typename T>
at::Tensor RankTensor(int rank, int64_t n, int64_t first = 0) {
  return Made<T>(n, [&](int64_t i) { return Value<T>(rank, first + i); });
}

// The first element whose bits differ is reported.
template <typename T>
testing::AssertionResult SameBits(const at::Tensor& got, const at::Tensor& expected) {
  if (got.numel() != expected.numel()) {
    return testing::AssertionFailure() << got.numel() << " elements instead of " << expected.numel();
  }
  const T *a = got.const_data_ptr<T>(), *b = expected.const_data_ptr<T>();
  for (int64_t i = 0; i < got.numel(); ++i) {
    if (std::memcmp(a + i, b + i, sizeof(T)) != 0) {
      return testing::AssertionFailure() << at::toString(got.scalar_type()) << " element " << i << " of " << got.numel()
                                         << " is " << +static_cast<double>(a[i]) << " instead of "
                                         << +static_cast<double>(b[i]);
    }
  }
  return testing::AssertionSuccess();
}

// Small, odd, and on both sides of where an all_reduce begins to go in parts (16,384 elements).
constexpr int64_t kSizes[] = {1, 7, 1000, 16384, 16385, 100003};

template <typename T>
class Collectives : public testing::Test {
 protected:
  Collectives() : group_(MakeWorldGroup(&log_)), rank_(group_->rank()), ranks_(group_->size()) {}

  OperationLog log_;
  std::shared_ptr<ProcessGroup> group_;
  const int rank_, ranks_;
};

using Dtypes = testing::Types<float, double, c10::BFloat16, c10::Half, int64_t, int32_t, uint8_t>;
TYPED_TEST_SUITE(Collectives, Dtypes);

TYPED_TEST(Collectives, AllGatherBringsEveryRanksPartInRankOrder) {
  using T = TypeParam;
  for (const int64_t n : kSizes) {
    const at::Tensor expected = Made<T>(n * this->ranks_, [&](int64_t i) { return Value<T>(i / n, i % n); });
    at::Tensor output = at::zeros({n * this->ranks_}, at::TensorOptions().dtype(TypeOf<T>()));
    this->group_->AllGather(output, RankTensor<T>(this->rank_, n)).Wait();
    EXPECT_TRUE(SameBits<T>(output, expected));

    // The input may lie at this rank's place in the output.
    at::Tensor in_place = at::zeros({n * this->ranks_}, output.options());
    at::Tensor own = in_place.narrow(0, n * this->rank_, n);
    own.copy_(RankTensor<T>(this->rank_, n));
    this->group_->AllGather(in_place, own).Wait();
    EXPECT_TRUE(SameBits<T>(in_place, expected));
  }
}

TYPED_TEST(Collectives, ReduceScatterAddsInRankOrder) {
  using T = TypeParam;
  for (const int64_t n : kSizes) {
    const int64_t first = n * this->rank_;
    at::Tensor output = at::zeros({n}, at::TensorOptions().dtype(TypeOf<T>()));
    this->group_->ReduceScatter(output, RankTensor<T>(this->rank_, n * this->ranks_)).Wait();
    EXPECT_TRUE(SameBits<T>(
        output, Made<T>(n, [&](int64_t i) { return static_cast<T>(WideSum<T>(this->ranks_, first + i)); })));
  }
}

TYPED_TEST(Collectives, AllReduceAddsInRankOrder) {
  using T = TypeParam;
  for (const int64_t n : kSizes) {
    at::Tensor tensor = RankTensor<T>(this->rank_, n);
    this->group_->AllReduce(tensor, ReduceOp::kSum).Wait();
    EXPECT_TRUE(
        SameBits<T>(tensor, Made<T>(n, [&](int64_t i) { return static_cast<T>(WideSum<T>(this->ranks_, i)); })));
  }
}

TYPED_TEST(Collectives, AllReduceFindsTheLargest) {
  using T = TypeParam;
  for (const int64_t n : kSizes) {
    at::Tensor tensor = RankTensor<T>(this->rank_, n);
    this->group_->AllReduce(tensor, ReduceOp::kMax).Wait();
    EXPECT_TRUE(SameBits<T>(tensor, Made<T>(n, [&](int64_t i) { return Largest<T>(this->ranks_, i); })));
  }
}

TYPED_TEST(Collectives, BroadcastFromEveryRoot) {
  using T = TypeParam;
  for (int root = 0; root < this->ranks_; ++root) {
    at::Tensor tensor = RankTensor<T>(this->rank_, 4099);
    this->group_->Broadcast(tensor, root).Wait();
    EXPECT_TRUE(SameBits<T>(tensor, RankTensor<T>(root, 4099)));
  }
}

TYPED_TEST(Collectives, AllToAllTransposes) {
  using T = TypeParam;
  for (const int64_t n : kSizes) {
    at::Tensor output = at::zeros({n * this->ranks_}, at::TensorOptions().dtype(TypeOf<T>()));
    this->group_->AllToAll(output, RankTensor<T>(this->rank_, n * this->ranks_)).Wait();
    EXPECT_TRUE(SameBits<T>(
        output, Made<T>(n * this->ranks_, [&](int64_t i) { return Value<T>(i / n, this->rank_ * n + i % n); })));
  }
}

// Every rank sends a large message to its right before anybody receives.
TYPED_TEST(Collectives, ExchangeInARingDoesNotDeadlock) {
  using T = TypeParam;
  for (const int64_t n : {int64_t{3}, int64_t{1} << 20}) {
    const int right = (this->rank_ + 1) % this->ranks_, left = (this->rank_ + this->ranks_ - 1) % this->ranks_;
    const at::Tensor first = RankTensor<T>(this->rank_, n), second = RankTensor<T>(this->rank_, n, /*first=*/n);
    at::Tensor got_first = at::zeros({n}, first.options()), got_second = at::zeros({n}, first.options());
    this->group_
        ->Exchange({{PeerTransfer::kSend, first, right},
                    {PeerTransfer::kSend, second, right},
                    {PeerTransfer::kReceive, got_first, left},
                    {PeerTransfer::kReceive, got_second, left}})
        .Wait();
    EXPECT_TRUE(SameBits<T>(got_first, RankTensor<T>(left, n)));
    EXPECT_TRUE(SameBits<T>(got_second, RankTensor<T>(left, n, n)));
  }
}

TYPED_TEST(Collectives, SeveralOperationsUnderWayFinishInAnyOrder) {
  using T = TypeParam;
  const int64_t n = 20001;
  const at::TensorOptions options = at::TensorOptions().dtype(TypeOf<T>());
  at::Tensor gathered = at::zeros({n * this->ranks_}, options), scattered = at::zeros({n}, options);
  at::Tensor small = RankTensor<T>(this->rank_, 5), large = RankTensor<T>(this->rank_, n);
  Work gather = this->group_->AllGather(gathered, RankTensor<T>(this->rank_, n));
  Work reduce = this->group_->AllReduce(small, ReduceOp::kSum);
  Work scatter = this->group_->ReduceScatter(scattered, RankTensor<T>(this->rank_, n * this->ranks_));
  Work large_reduce = this->group_->AllReduce(large, ReduceOp::kSum);
  large_reduce.Wait();
  scatter.Wait();
  gather.Wait();
  reduce.Wait();
  const auto sum = [&](int64_t i) { return static_cast<T>(WideSum<T>(this->ranks_, i)); };
  EXPECT_TRUE(SameBits<T>(gathered, Made<T>(n * this->ranks_, [&](int64_t i) { return Value<T>(i / n, i % n); })));
  EXPECT_TRUE(SameBits<T>(small, Made<T>(5, sum)));
  EXPECT_TRUE(SameBits<T>(large, Made<T>(n, sum)));
  EXPECT_TRUE(SameBits<T>(scattered, Made<T>(n, [&](int64_t i) { return sum(this->rank_ * n + i); })));
}

TEST(ProcessGroup, ReducesBfloat16IntoFloat32WithoutRoundingTheSum) {
  OperationLog log;
  const std::shared_ptr<ProcessGroup> group = MakeWorldGroup(&log);
  const int64_t n = 5003, first = n * group->rank();
  at::Tensor output = at::zeros({n}, at::TensorOptions().dtype(at::kFloat));
  group->ReduceScatter(output, RankTensor<c10::BFloat16>(group->rank(), n * group->size())).Wait();
  EXPECT_TRUE(SameBits<float>(
      output, Made<float>(n, [&](int64_t i) { return WideSum<c10::BFloat16>(group->size(), first + i); })));
}

TEST(ProcessGroup, CountsCallsAndTheBytesThisRankSends) {
  REQUIRE_RANKS(TestProcess().size() > 1, "one rank sends nothing");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> group = MakeWorldGroup(&log);
  const int64_t others = group->size() - 1, n = 1000, large = 16385, part = (large + others) / group->size();
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor one = at::zeros({n}, options), all = at::zeros({n * group->size()}, options);
  group->AllGather(all, one).Wait();
  group->AllGather(all, one).Wait();
  group->ReduceScatter(one, all).Wait();
  group->AllReduce(one, ReduceOp::kSum).Wait();
  group->AllReduce(at::zeros({large}, options), ReduceOp::kSum).Wait();
  group->Broadcast(one, 0).Wait();
  group->AllToAll(at::zeros_like(all), all).Wait();
  group->Barrier();
  const auto counts = log.counts();
  const auto expect = [&](const char* operation, int64_t calls, int64_t bytes) {
    const auto found = counts.find({"world", operation});
    EXPECT_NE(found, counts.end()) << operation;
    if (found == counts.end()) return;
    EXPECT_EQ(found->second.calls, calls) << operation;
    EXPECT_EQ(found->second.bytes, bytes) << operation;
  };
  expect("all_gather", 2, 2 * 4 * n * others);
  expect("reduce_scatter", 1, 4 * n * others);
  expect("all_reduce", 2, 4 * n * others + 2 * 4 * part * others);
  expect("broadcast", 1, group->rank() == 0 ? 4 * n : 0);
  expect("all_to_all", 1, 4 * n * others);
  expect("barrier", 1, 0);
  EXPECT_EQ(counts.size(), 6u);
}

TEST(ProcessGroup, LogNamesWhatIsUnderWay) {
  REQUIRE_RANKS(TestProcess().size() > 1, "one rank sends nothing");
  OperationLog log;
  const std::shared_ptr<ProcessGroup> group = MakeWorldGroup(&log);
  log.Beat("step 12");
  at::Tensor all = at::zeros({10 * group->size()}, at::TensorOptions().dtype(at::kFloat));
  Work work = group->AllGather(all, at::zeros({10}, all.options()));
  const std::string during = log.Describe(2);
  work.Wait();
  EXPECT_NE(during.find("in step 12"), std::string::npos) << during;
  EXPECT_NE(during.find("all_gather #1 on group world"), std::string::npos) << during;
  EXPECT_NE(during.find("WAITING"), std::string::npos) << during;
  EXPECT_EQ(log.Describe(2).find("WAITING"), std::string::npos) << log.Describe(2);
}

// ---- Mesh ----

MeshShape ShapeOf(std::initializer_list<std::pair<Axis, int>> sizes) {
  MeshShape shape;
  for (const auto& [axis, size] : sizes) shape[axis] = size;
  return shape;
}

// The job's ranks in this group, in the group's order.
std::vector<int64_t> Members(ProcessGroup& group) {
  at::Tensor all = at::zeros({group.size()}, at::TensorOptions().dtype(at::kLong));
  group.AllGather(all, Made<int64_t>(1, [](int64_t) { return TestProcess().rank(); })).Wait();
  const int64_t* data = all.const_data_ptr<int64_t>();
  return {data, data + group.size()};
}

// A 2 x 2 mesh of every pair of axes: rank = 2 * outer + inner.
TEST(Mesh, GroupsAlongEachAxisOfTwoByTwo) {
  REQUIRE_RANKS(TestProcess().size() == 4, "needs 4 ranks");
  const int64_t rank = TestProcess().rank(), outer_at = rank / 2, inner_at = rank % 2;
  for (int o = 0; o < kNumAxes; ++o) {
    for (int i = o + 1; i < kNumAxes; ++i) {
      const Axis outer = static_cast<Axis>(o), inner = static_cast<Axis>(i);
      absl::StatusOr<std::unique_ptr<Mesh>> mesh =
          Mesh::Create(TestProcess(), ShapeOf({{outer, 2}, {inner, 2}}), at::kCPU);
      ASSERT_TRUE(mesh.ok()) << mesh.status();
      EXPECT_EQ((*mesh)->coordinate(outer), outer_at);
      EXPECT_EQ((*mesh)->coordinate(inner), inner_at);

      const std::shared_ptr<ProcessGroup> along_outer = (*mesh)->group({outer}), along_inner = (*mesh)->group({inner});
      const std::shared_ptr<ProcessGroup> both = (*mesh)->group({inner, outer});
      EXPECT_EQ(along_outer->name(), AxisName(outer));
      EXPECT_EQ(along_inner->name(), AxisName(inner));
      EXPECT_EQ(both->name(), absl::StrCat(AxisName(outer), "+", AxisName(inner)));
      EXPECT_EQ(along_outer->rank(), outer_at);
      EXPECT_EQ(along_inner->rank(), inner_at);
      EXPECT_EQ(both->rank(), rank);
      EXPECT_EQ(Members(*along_outer), (std::vector<int64_t>{inner_at, 2 + inner_at}));
      EXPECT_EQ(Members(*along_inner), (std::vector<int64_t>{2 * outer_at, 2 * outer_at + 1}));
      EXPECT_EQ(Members(*both), (std::vector<int64_t>{0, 1, 2, 3}));
      EXPECT_EQ((*mesh)->group({outer, inner}), both)
          << "a set of axes is one group, in whatever order it is asked for";
    }
  }
}

TEST(Mesh, AxesOfSizeOneAreGroupsOfOneThatCopy) {
  const int ranks = TestProcess().size();
  absl::StatusOr<std::unique_ptr<Mesh>> mesh =
      Mesh::Create(TestProcess(), ShapeOf({{Axis::kDataShard, ranks}}), at::kCPU);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  const std::shared_ptr<ProcessGroup> group = (*mesh)->group({Axis::kTensor, Axis::kPipeline});
  EXPECT_EQ(group->size(), 1);
  EXPECT_EQ(group->name(), "pipeline+tensor");
  EXPECT_EQ(Members(*group), std::vector<int64_t>{TestProcess().rank()});
  EXPECT_EQ((*mesh)->control().size(), ranks);
  EXPECT_EQ((*mesh)->num_data_ranks(), ranks);
  EXPECT_EQ((*mesh)->data_rank(), TestProcess().rank());
}

TEST(Mesh, DataRanksCountReplicasThenShards) {
  REQUIRE_RANKS(TestProcess().size() == 4, "needs 4 ranks");
  absl::StatusOr<std::unique_ptr<Mesh>> mesh =
      Mesh::Create(TestProcess(), ShapeOf({{Axis::kDataReplicate, 2}, {Axis::kDataShard, 2}}), at::kCPU);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  EXPECT_EQ((*mesh)->num_data_ranks(), 4);
  EXPECT_EQ((*mesh)->data_rank(), TestProcess().rank());
}

TEST(Mesh, RanksHaveTheSameKindOfDeviceAndAGpuEach) {
  EXPECT_TRUE(CheckDevices({{"a", ""}, {"a", ""}}).ok());
  EXPECT_TRUE(CheckDevices({{"a", "11"}, {"a", "22"}, {"b", "11"}}).ok());
  const absl::Status mixed = CheckDevices({{"a", "11"}, {"b", ""}});
  EXPECT_EQ(ExitCodeOf(mixed), ExitCode::kConfig);
  EXPECT_NE(mixed.message().find("rank 0 (host a) has a GPU, but rank 1 (host b) sees none"), absl::string_view::npos)
      << mixed;
  const absl::Status shared = CheckDevices({{"a", "11"}, {"b", "11"}, {"b", "11"}});
  EXPECT_EQ(ExitCodeOf(shared), ExitCode::kConfig);
  EXPECT_NE(shared.message().find("ranks 1 and 2 would share one GPU of host b"), absl::string_view::npos) << shared;
}

TEST(Mesh, RefusesAShapeThatIsNotTheJobs) {
  const absl::StatusOr<std::unique_ptr<Mesh>> mesh =
      Mesh::Create(TestProcess(), ShapeOf({{Axis::kTensor, 3}}), at::kCPU);
  EXPECT_EQ(ExitCodeOf(mesh.status()), ExitCode::kConfig);
  EXPECT_NE(mesh.status().message().find(absl::StrCat("= 3 ranks, but the job has ", TestProcess().size())),
            absl::string_view::npos)
      << mesh.status();
}

}  // namespace
}  // namespace trireme
