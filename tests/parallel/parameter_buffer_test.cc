#include "parallel/sharding/parameter_buffer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "parallel/comm/mpi_group.h"
#include "tests/parallel/played_group.h"

namespace trireme {
namespace {

ParameterSpec Spec(const std::string& name, std::vector<int64_t> shape, bool fused = false) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = std::move(shape);
  spec.fused_with_previous = fused;
  return spec;
}

// A norm, a fused group of three, and a matrix: 100 + 6 x 50 + 3 x 50 + 3 x 50 + 7 x 30 elements.
std::vector<ParameterSpec> Specs() {
  std::vector<ParameterSpec> specs = {Spec("norm", {100}), Spec("q", {6, 50}), Spec("k", {3, 50}, true),
                                      Spec("v", {3, 50}, true), Spec("o", {7, 30})};
  specs[0].initialization = Initialization::kOnes;
  return specs;
}

BufferOptions SelfOptions() {
  BufferOptions options;
  options.name = "unit";
  options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("self");
  return options;
}

// The same buffer on every rank of a group, all in this process.
struct PlayedRanks {
  PlayedRanks(int size, const BufferOptions& base, const std::vector<ParameterSpec>& specs = Specs()) {
    std::vector<ParameterBuffer*> peers;
    for (int rank = 0; rank < size; ++rank) {
      groups.push_back(std::make_shared<PlayedGroup>(rank, size));
      BufferOptions options = base;
      options.gather_group = options.reduce_group = groups.back();
      options.replicate_group = MakeSelfGroup("replicate");
      buffers.push_back(std::make_unique<ParameterBuffer>(specs, options));
      peers.push_back(buffers.back().get());
    }
    for (auto& group : groups) group->AddPeers(peers);
  }
  void Initialize(uint64_t seed) {
    for (auto& buffer : buffers) buffer->Initialize(seed);
    // All own values first: a gather reads them.
    for (int pass = 0; pass < 2; ++pass) {
      for (auto& buffer : buffers) buffer->Publish(/*converted=*/false);
    }
  }
  std::vector<std::shared_ptr<PlayedGroup>> groups;
  std::vector<std::unique_ptr<ParameterBuffer>> buffers;
};

void AddOnes(Weight& weight, double value = 1) {
  weight.AddGradient([value](at::Tensor& accumulator, bool overwrite) {
    overwrite ? accumulator.fill_(value) : accumulator.add_(value);
  });
}
void AddToAll(ParameterBuffer& buffer, double value = 1) {
  for (const int index : {0, 1, 4}) AddOnes(buffer.weight(index), value);
}

TEST(ParameterBufferLayout, GroupsBeginAtMultiplesOf256AndMembersLieUnpadded) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  std::vector<int64_t> begins, sizes;
  for (const Segment& segment : buffer.segments()) {
    EXPECT_EQ(segment.parameter_begin, 0);
    begins.push_back(segment.own_begin);
    sizes.push_back(segment.numel);
  }
  EXPECT_EQ(begins, (std::vector<int64_t>{0, 256, 556, 706, 1024}));
  EXPECT_EQ(sizes, (std::vector<int64_t>{100, 300, 150, 150, 210}));
  EXPECT_EQ(buffer.numel(), 1280);
  EXPECT_EQ(buffer.num_parameters(), 910);
}

TEST(ParameterBufferLayout, AFusedGroupIsOneMatrix) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  buffer.own_weights().copy_(at::arange(buffer.numel(), buffer.own_weights().options()));
  EXPECT_EQ(buffer.weight(1).full().data.sizes(), at::IntArrayRef({12, 50}));
  EXPECT_EQ(&buffer.weight(1), &buffer.weight(3));
  EXPECT_EQ(buffer.weight(1).full().data[6][0].item<float>(), 556) << "k begins where q ends";
  EXPECT_EQ(buffer.weight(0).full().data.sizes(), at::IntArrayRef({100}));
  EXPECT_EQ(buffer.weight(4).full().data[0][0].item<float>(), 1024);
}

TEST(ParameterBufferLayout, NothingToFuseWith) {
  EXPECT_DEATH(ParameterBuffer({Spec("k", {3, 50}, true)}, SelfOptions()), "k has nothing to be fused with");
}

// Each element of each parameter belongs to exactly one rank, at the place that the whole layout gives it.
TEST(ParameterBufferLayout, ShardsPartitionTheParameters) {
  ParameterBuffer whole(Specs(), SelfOptions());
  for (const auto level : {ShardLevel::kParameters, ShardLevel::kGradients, ShardLevel::kOptimizer}) {
    for (const int ranks : {2, 3, 7}) {
      BufferOptions options = SelfOptions();
      options.shard = level;
      PlayedRanks played(ranks, options);
      std::map<std::pair<int, int64_t>, int> owners;
      for (int rank = 0; rank < ranks; ++rank) {
        const ParameterBuffer& buffer = *played.buffers[rank];
        const int64_t shard = buffer.own_weights().numel();
        EXPECT_EQ(shard * ranks, buffer.numel());
        EXPECT_EQ(shard % 256, 0);
        EXPECT_EQ(buffer.unique_segments().size(), buffer.segments().size());
        for (const Segment& s : buffer.segments()) {
          EXPECT_LE(s.own_begin + s.numel, shard);
          const int64_t offset = whole.segments()[s.parameter].own_begin;
          EXPECT_EQ(rank * shard + s.own_begin, offset + s.parameter_begin);
          for (int64_t i = 0; i < s.numel; ++i) ++owners[{s.parameter, s.parameter_begin + i}];
        }
      }
      EXPECT_EQ(static_cast<int64_t>(owners.size()), whole.num_parameters()) << ranks;
      for (const auto& [element, count] : owners) ASSERT_EQ(count, 1) << "parameter " << element.first;
    }
  }
}

TEST(ParameterBufferLayout, LevelNoneOwnsAllAndCountsItsPart) {
  BufferOptions options = SelfOptions();
  options.shard = ShardLevel::kNone;
  PlayedRanks played(3, options);
  std::map<std::pair<int, int64_t>, int> owners;
  for (const auto& buffer : played.buffers) {
    EXPECT_EQ(buffer->own_weights().numel(), buffer->numel());
    for (const Segment& s : buffer->unique_segments()) {
      for (int64_t i = 0; i < s.numel; ++i) ++owners[{s.parameter, s.parameter_begin + i}];
    }
  }
  EXPECT_EQ(static_cast<int64_t>(owners.size()), played.buffers[0]->num_parameters());
  for (const auto& [element, count] : owners) ASSERT_EQ(count, 1) << "parameter " << element.first;
}

TEST(ParameterBufferValues, InitializationIsAFunctionOfSeedNameAndElement) {
  ParameterBuffer whole(Specs(), SelfOptions());
  whole.Initialize(11);
  for (const int ranks : {2, 3, 5}) {
    PlayedRanks played(ranks, SelfOptions());
    std::vector<at::Tensor> shards;
    for (auto& buffer : played.buffers) {
      buffer->Initialize(11);
      shards.push_back(buffer->own_weights());
    }
    const at::Tensor joined = at::cat(shards);
    EXPECT_TRUE(joined.narrow(0, 0, whole.numel()).equal(whole.own_weights())) << ranks << " ranks";
  }
  // In another buffer, at another place.
  ParameterBuffer other({Spec("x", {3}), Spec("o", {7, 30})}, SelfOptions());
  other.Initialize(11);
  EXPECT_TRUE(other.weight(1).full().data.equal(whole.weight(4).full().data));
  // Another seed or name: other numbers.
  other.Initialize(12);
  EXPECT_FALSE(other.weight(1).full().data.equal(whole.weight(4).full().data));
  ParameterBuffer renamed({Spec("p", {7, 30})}, SelfOptions());
  renamed.Initialize(11);
  EXPECT_FALSE(renamed.weight(0).full().data.equal(whole.weight(4).full().data));
}

TEST(ParameterBufferValues, InitializationIsNormal) {
  ParameterSpec spec = Spec("w", {1000, 500}), ones = Spec("ones", {10}), zeros = Spec("zeros", {10});
  spec.standard_deviation = 0.5;
  ones.initialization = Initialization::kOnes;
  zeros.initialization = Initialization::kZeros;
  ParameterBuffer buffer({spec, ones, zeros}, SelfOptions());
  buffer.Initialize(5);
  const at::Tensor w = buffer.weight(0).full().data.to(at::kDouble).flatten();
  EXPECT_NEAR(w.mean().item<double>(), 0, 4 * 0.5 / std::sqrt(5e5));
  EXPECT_NEAR(w.std().item<double>(), 0.5, 4 * 0.5 / std::sqrt(1e6));
  EXPECT_NEAR(w.abs().gt(1).to(at::kDouble).mean().item<double>(), 0.0455, 0.0015) << "beyond two deviations";
  EXPECT_NEAR((w.narrow(0, 0, 499'999) * w.narrow(0, 1, 499'999)).mean().item<double>(), 0, 0.0015) << "neighbours";
  EXPECT_TRUE(buffer.weight(1).full().data.eq(1).all().item<bool>());
  EXPECT_TRUE(buffer.weight(2).full().data.eq(0).all().item<bool>());
}

TEST(ParameterBufferValues, GatheredIsTheWhole) {
  ParameterBuffer whole(Specs(), SelfOptions());
  whole.Initialize(11);
  for (const auto level :
       {ShardLevel::kNone, ShardLevel::kOptimizer, ShardLevel::kGradients, ShardLevel::kParameters}) {
    BufferOptions options = SelfOptions();
    options.shard = level;
    PlayedRanks played(3, options);
    played.Initialize(11);
    for (auto& buffer : played.buffers) {
      buffer->StartUnshard();
      buffer->FinishUnshard();
      for (const int index : {0, 1, 4}) {
        EXPECT_TRUE(buffer->weight(index).full().data.equal(whole.weight(index).full().data))
            << ShardLevelName(level) << " " << index;
      }
      buffer->Reshard();
      buffer->FinishUnshard();  // Alone it starts the gather too.
      EXPECT_TRUE(buffer->weight(4).full().data.equal(whole.weight(4).full().data));
    }
  }
}

TEST(ParameterBufferValues, UseAfterReshardIsCaught) {
  BufferOptions options = SelfOptions();
  options.poison_resharded = true;
  PlayedRanks played(2, options);
  played.Initialize(3);
  ParameterBuffer& buffer = *played.buffers[0];
  EXPECT_DEATH((void)buffer.weight(4).full(), "parameter o is used while its unit is resharded");
  buffer.StartUnshard();
  EXPECT_DEATH((void)buffer.weight(4).full(), "used while its unit is resharded") << "the gather is still under way";
  buffer.FinishUnshard();
  const at::Tensor kept = buffer.weight(4).full().data;
  EXPECT_TRUE(kept.isfinite().all().item<bool>());
  buffer.Reshard();
  EXPECT_TRUE(kept.isnan().all().item<bool>()) << "whoever kept a gathered weight reads NaN";
  EXPECT_TRUE(buffer.own_weights().isfinite().all().item<bool>());
}

TEST(ParameterBufferValues, MasterWeightsAreRoundedForCompute) {
  BufferOptions options = SelfOptions();
  options.compute = at::kBFloat16;
  PlayedRanks played(2, options);
  played.Initialize(3);
  ParameterBuffer& buffer = *played.buffers[1];
  EXPECT_EQ(buffer.own_weights().scalar_type(), at::kFloat);
  EXPECT_TRUE(buffer.own_compute().equal(buffer.own_weights().to(at::kBFloat16)));
  buffer.FinishUnshard();
  EXPECT_EQ(buffer.weight(1).full().data.scalar_type(), at::kBFloat16);
}

TEST(ParameterBufferValues, WithoutMasterThereIsOneCopy) {
  BufferOptions options = SelfOptions();
  options.compute = at::kBFloat16;
  options.master_weights = false;
  ParameterBuffer buffer(Specs(), options);
  buffer.Initialize(3);
  EXPECT_EQ(buffer.own_weights().scalar_type(), at::kBFloat16);
  EXPECT_EQ(buffer.own_weights().data_ptr(), buffer.own_compute().data_ptr());
  ParameterBuffer in_float(Specs(), SelfOptions());
  in_float.Initialize(3);
  EXPECT_TRUE(buffer.own_weights().equal(in_float.own_weights().to(at::kBFloat16)));
}

TEST(ParameterBufferValues, PublishReachesKeptSlabs) {
  BufferOptions options = SelfOptions();
  options.shard = ShardLevel::kGradients;
  PlayedRanks played(2, options);
  played.Initialize(3);
  for (auto& buffer : played.buffers) buffer->own_weights().fill_(buffer.get() == played.buffers[0].get() ? 1 : 2);
  for (auto& buffer : played.buffers) buffer->Publish(/*converted=*/false);
  const at::Tensor norm = played.buffers[1]->weight(0).full().data, o = played.buffers[1]->weight(4).full().data;
  EXPECT_TRUE(norm.eq(1).all().item<bool>());
  EXPECT_TRUE(o.eq(2).all().item<bool>());
}

TEST(ParameterBufferGradients, AddUpOverMicrobatchesAndStartAnew) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  for (int step = 0; step < 2; ++step) {
    buffer.BeginStep();
    for (int microbatch = 0; microbatch < 3; ++microbatch) {
      AddToAll(buffer, 1 + step);
      buffer.StartReduce(microbatch == 2);
      buffer.FinishReduce();
    }
    buffer.FinishGradients(3);
    for (const Segment& s : buffer.segments()) {
      EXPECT_TRUE(buffer.own_gradient().narrow(0, s.own_begin, s.numel).eq(3 * (1 + step)).all().item<bool>());
    }
  }
  // Padding has no gradient: norms and optimizers may run over it.
  EXPECT_EQ(buffer.own_gradient().narrow(0, 100, 156).abs().sum().item<float>(), 0);
}

TEST(ParameterBufferGradients, EveryLevelGivesTheSameSum) {
  for (const auto level :
       {ShardLevel::kNone, ShardLevel::kOptimizer, ShardLevel::kGradients, ShardLevel::kParameters}) {
    for (const bool every : {true, false}) {
      BufferOptions options = SelfOptions();
      options.shard = level;
      options.reduce_every_microbatch = every;
      PlayedRanks played(2, options);
      for (int rank = 0; rank < 2; ++rank) {
        SCOPED_TRACE(absl::StrCat(ShardLevelName(level), ", every ", every, ", rank ", rank));
        ParameterBuffer& buffer = *played.buffers[rank];
        buffer.BeginStep();
        for (int microbatch = 0; microbatch < 3; ++microbatch) {
          AddToAll(buffer, 1 << microbatch);
          buffer.StartReduce(microbatch == 2);
        }
        buffer.FinishGradients(3);
        EXPECT_EQ(played.groups[rank]->reductions, every ? 3 : 1);
        ASSERT_EQ(buffer.own_gradient().sizes(), buffer.own_weights().sizes());
        for (const Segment& s : buffer.segments()) {
          EXPECT_TRUE(buffer.own_gradient().narrow(0, s.own_begin, s.numel).eq(2 * 7).all().item<bool>());
        }
      }
    }
  }
}

TEST(ParameterBufferGradients, Bf16OnTheWireIsRoundedOnce) {
  BufferOptions options = SelfOptions();
  options.reduce = at::kBFloat16;
  PlayedRanks played(2, options);
  ParameterBuffer& buffer = *played.buffers[0];
  buffer.BeginStep();
  AddToAll(buffer, 1.001);  // 1 in bfloat16.
  buffer.StartReduce(true);
  buffer.FinishGradients(1);
  EXPECT_EQ(buffer.own_gradient().scalar_type(), at::kFloat);
  EXPECT_EQ(buffer.own_gradient()[0].item<float>(), 2);
}

TEST(ParameterBufferGradients, AMissingContributionIsCaught) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  buffer.BeginStep();
  AddOnes(buffer.weight(0));
  AddOnes(buffer.weight(1));
  buffer.StartReduce(true);
  EXPECT_DEATH(buffer.FinishGradients(1), "parameter o got 0 gradient contributions");
}

TEST(ParameterBufferGradients, OneTooManyIsCaught) {
  ParameterBuffer buffer(Specs(), SelfOptions());
  buffer.BeginStep();
  AddToAll(buffer);
  AddOnes(buffer.weight(2));
  buffer.StartReduce(true);
  EXPECT_DEATH(buffer.FinishGradients(1), "parameter q got 2 gradient contributions");
}

TEST(ParameterBufferGradients, FrozenParametersNeedNone) {
  std::vector<ParameterSpec> specs = Specs();
  specs[4].trainable = false;
  ParameterBuffer buffer(specs, SelfOptions());
  EXPECT_FALSE(buffer.weight(4).trainable());
  buffer.BeginStep();
  AddOnes(buffer.weight(0));
  AddOnes(buffer.weight(1));
  buffer.StartReduce(true);
  buffer.FinishGradients(1);
}

TEST(ParameterBufferGradients, ATiedMatrixIsUsedTwice) {
  BufferOptions options = SelfOptions();
  options.uses = 2;
  ParameterBuffer buffer({Spec("embedding", {9, 4})}, options);
  buffer.BeginStep();
  AddOnes(buffer.weight(0));
  buffer.StartReduce(true);
  EXPECT_DEATH(buffer.FinishGradients(1), "got 1 gradient contributions");
  AddOnes(buffer.weight(0));
  buffer.FinishGradients(1);
  EXPECT_EQ(buffer.own_gradient()[0].item<float>(), 2);
}

}  // namespace
}  // namespace trireme
