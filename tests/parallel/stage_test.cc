// The walk over units: in which order things happen, and what must not change numbers.
#include "parallel/sharding/stage.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/models/tiny_decoder.h"
#include "tests/parallel/played_group.h"

namespace trireme {
namespace {

std::function<void(const std::string&, int)> Recorder(std::vector<std::string>* actions) {
  return [actions](const std::string& action, int unit) { actions->push_back(absl::StrCat(action, " ", unit)); };
}

std::vector<at::Tensor> Gradients(const Stage& stage) {
  std::vector<at::Tensor> gradients;
  for (const auto& buffer : stage.buffers()) gradients.push_back(buffer->own_gradient().clone());
  return gradients;
}

void ExpectSameBits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i].equal(b[i])) << "buffer " << i;
    EXPECT_GT(a[i].abs().max().item<double>(), 0) << "buffer " << i << " has no gradient at all";
  }
}

// Two blocks: units 0 (embedding), 1, 2, 3 (head).
TEST(StageOrder, GathersOneAheadAndReducesAfterBackward) {
  const DecoderSpec spec = TinyDecoderSpec();
  std::vector<std::string> actions;
  StageOptions options;
  options.observer = Recorder(&actions);
  const auto stage = MakeStage(spec, OneRankOptions(), options);
  ForwardBackward(*stage, TinyBatch(spec, {9}));
  EXPECT_EQ(actions, (std::vector<std::string>{
                         "unshard 0", "unshard 1",  "forward 0",  "reshard 0", "unshard 2", "forward 1",  "reshard 1",
                         "unshard 3", "forward 2",  "reshard 2",  "forward 3",                             // Forward.
                         "unshard 2", "backward 3", "reduce 3",   "reshard 3", "unshard 1", "backward 2",  // Backward.
                         "reduce 2",  "reshard 2",  "backward 1", "reduce 1",  "reshard 1", "backward 0", "reduce 0"}));
}

TEST(StageOrder, RecomputesBlocksJustBeforeTheirBackward) {
  const DecoderSpec spec = TinyDecoderSpec();
  std::vector<std::string> actions;
  StageOptions options;
  options.recompute = true;
  options.observer = Recorder(&actions);
  const auto stage = MakeStage(spec, OneRankOptions(), options);
  ForwardBackward(*stage, TinyBatch(spec, {9}));
  std::vector<std::string> computed;
  for (const std::string& action : actions) {
    if (action.find("shard") == std::string::npos && action.find("reduce") == std::string::npos)
      computed.push_back(action);
  }
  EXPECT_EQ(computed,
            (std::vector<std::string>{"forward 0", "forward 1", "forward 2", "forward 3", "backward 3", "recompute 2",
                                      "backward 2", "recompute 1", "backward 1", "backward 0"}));
}

TEST(StageOrder, ATiedMatrixIsReducedOnceAfterTheEmbedding) {
  DecoderSpec spec = TinyDecoderSpec();
  spec.tied_embeddings = true;
  const auto stage = MakeStage(spec, OneRankOptions(), {});
  EXPECT_EQ(stage->units().front()->buffers()[0], stage->units().back()->buffers()[1]);
  EXPECT_EQ(stage->buffers()[0]->options().uses, 2);
  const MicrobatchTensors batch = TinyBatch(spec, {9});
  ForwardBackward(*stage, batch);  // FinishGradients CHECKs that both uses contributed.

  // Both uses are in the gradient: it is the sum of what untied matrices of the same values get.
  spec.tied_embeddings = false;
  const auto untied = MakeStage(spec, OneRankOptions(), {});
  const Weight& head = untied->buffers().back()->weight(1);
  head.full().data.copy_(untied->buffers()[0]->weight(0).full().data);
  ForwardBackward(*untied, batch);
  const int64_t n = spec.vocab_size * spec.hidden_size;
  const Segment& head_segment = untied->buffers().back()->segments()[1];
  const at::Tensor expected = untied->buffers()[0]->own_gradient().narrow(0, 0, n) +
                              untied->buffers().back()->own_gradient().narrow(0, head_segment.own_begin, n);
  EXPECT_LT(RelativeError(stage->buffers()[0]->own_gradient().narrow(0, 0, n), expected), 1e-6);
}

TEST(StageNumbers, RecomputeChangesNoBit) {
  for (const bool tied : {false, true}) {
    DecoderSpec spec = TinyDecoderSpec();
    spec.tied_embeddings = tied;
    const MicrobatchTensors batch = TinyBatch(spec, {9, 1, 14});
    const auto kept = MakeStage(spec, OneRankOptions(), {});
    const double loss = ForwardBackward(*kept, batch);
    for (const bool offload : {false, true}) {
      for (const std::set<std::string>& keep : {std::set<std::string>{},
                                                {kKeepAttention},
                                                {kKeepQkv},
                                                {kKeepGateUp},
                                                {kKeepAttention, kKeepQkv},
                                                {kKeepAttention, kKeepQkv, kKeepGateUp}}) {
        StageOptions recompute;
        recompute.recompute = true;
        recompute.keep = keep;
        recompute.offload = offload;
        const auto again = MakeStage(spec, OneRankOptions(), recompute);
        EXPECT_EQ(ForwardBackward(*again, batch), loss);
        ExpectSameBits(Gradients(*kept), Gradients(*again));
      }
    }
  }
}

// Two ranks played in one process, slabs poisoned when resharded: whoever uses one too late computes NaN.
TEST(StageNumbers, ShardingChangesNoBit) {
  for (const bool tied : {false, true}) {
    DecoderSpec spec = TinyDecoderSpec();
    spec.tied_embeddings = tied;
    const MicrobatchTensors batch = TinyBatch(spec, {9, 14});
    const auto whole = MakeStage(spec, OneRankOptions(), {});
    const double loss = ForwardBackward(*whole, batch);
    for (const auto level :
         {ShardLevel::kNone, ShardLevel::kOptimizer, ShardLevel::kGradients, ShardLevel::kParameters}) {
      for (const bool recompute : {false, true}) {
        SCOPED_TRACE(absl::StrCat(ShardLevelName(level), ", recompute ", recompute, ", tied ", tied));
        BufferOptions options = OneRankOptions();
        options.shard = level;
        options.poison_resharded = true;
        StageOptions stage_options;
        stage_options.recompute = recompute;
        std::vector<std::shared_ptr<PlayedGroup>> groups;
        std::vector<DecoderUnits> ranks;
        for (int rank = 0; rank < 2; ++rank) {
          groups.push_back(std::make_shared<PlayedGroup>(rank, 2));
          options.gather_group = options.reduce_group = groups.back();
          ranks.push_back(BuildDecoder(spec, options, CpuAttention()));
          for (auto& buffer : ranks.back().buffers) buffer->Initialize(1);
        }
        for (size_t i = 0; i < ranks[0].buffers.size(); ++i) {
          for (auto& group : groups) group->AddPeers({ranks[0].buffers[i].get(), ranks[1].buffers[i].get()});
        }
        for (DecoderUnits& rank : ranks) {
          for (auto& buffer : rank.buffers) buffer->Publish(/*converted=*/false);
        }
        const std::vector<std::unique_ptr<ParameterBuffer>> others = std::move(ranks[1].buffers);
        Stage stage(std::move(ranks[0].units), std::move(ranks[0].buffers), stage_options);
        EXPECT_EQ(ForwardBackward(stage, batch), loss);
        at::Tensor sums = NoSums();
        stage.Evaluate(batch, {}, sums);
        EXPECT_EQ(sums[0].item<double>(), loss);
        for (size_t i = 0; i < stage.buffers().size(); ++i) {
          // The played sum doubles, exactly.
          const at::Tensor own = stage.buffers()[i]->own_gradient();
          const at::Tensor expected = whole->buffers()[i]->own_gradient() * 2;
          const int64_t n = std::min(own.numel(), expected.numel());
          EXPECT_TRUE(own.narrow(0, 0, n).equal(expected.narrow(0, 0, n))) << "buffer " << i;
        }
      }
    }
  }
}

TEST(StageNumbers, GradientsAddUpOverMicrobatches) {
  const DecoderSpec spec = TinyDecoderSpec();
  const MicrobatchTensors first = TinyBatch(spec, {9}, 1), second = TinyBatch(spec, {14}, 2);
  const auto stage = MakeStage(spec, OneRankOptions(), {});
  ForwardBackward(*stage, first);
  std::vector<at::Tensor> expected = Gradients(*stage);
  ForwardBackward(*stage, second);
  const std::vector<at::Tensor> other = Gradients(*stage);

  at::Tensor sums = NoSums();
  stage->BeginStep();
  for (const MicrobatchTensors* batch : {&first, &second}) {
    MicrobatchState state;
    state.batch = *batch;
    stage->Forward(state, {}, 1, sums);
    stage->Backward(state, {}, 1, sums, batch == &second);
  }
  stage->FinishGradients(2);
  const std::vector<at::Tensor> both = Gradients(*stage);
  for (size_t i = 0; i < both.size(); ++i) EXPECT_LT(RelativeError(both[i], expected[i] + other[i]), 1e-5) << i;
}

TEST(StageShapes, WhatFlowsBetweenUnits) {
  const DecoderSpec spec = TinyDecoderSpec();
  const auto stage = MakeStage(spec, OneRankOptions(), {});
  MicrobatchState state;
  state.batch = TinyBatch(spec, {9, 4});
  at::Tensor sums = NoSums();
  stage->BeginStep();
  stage->Forward(state, {}, 1, sums);
  ASSERT_EQ(state.inputs.size(), 4u);
  EXPECT_TRUE(state.inputs[0].empty()) << "the first unit reads the batch";
  for (int i = 1; i < 4; ++i) {
    ASSERT_EQ(state.inputs[i].size(), 1u);
    EXPECT_EQ(state.inputs[i][0].sizes(), at::IntArrayRef({13, spec.hidden_size}));
    EXPECT_TRUE(state.inputs[i][0].is_leaf()) << "autograd ends at the unit";
  }
  EXPECT_EQ(state.outputs[3][0].dim(), 0) << "the last unit returns a scalar";
  stage->Backward(state, {}, 1, sums, /*last=*/true);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(state.inputs[i].empty()) << "backward consumes the state";
    EXPECT_TRUE(state.outputs[i].empty());
  }
}

TEST(StageShapes, RecomputeKeepsInputsOnly) {
  const DecoderSpec spec = TinyDecoderSpec();
  StageOptions options;
  options.recompute = true;
  const auto stage = MakeStage(spec, OneRankOptions(), options);
  MicrobatchState state;
  state.batch = TinyBatch(spec, {9});
  at::Tensor sums = NoSums();
  stage->BeginStep();
  stage->Forward(state, {}, 1, sums);
  EXPECT_TRUE(state.outputs[1].empty());
  EXPECT_TRUE(state.outputs[2].empty());
  EXPECT_FALSE(state.outputs[0].empty());
  EXPECT_FALSE(state.outputs[3].empty());
  EXPECT_EQ(state.inputs[2][0].grad_fn(), nullptr);
}

TEST(StageNumbers, EvaluationIsForwardsLossWithoutGradients) {
  const DecoderSpec spec = TinyDecoderSpec();
  const auto stage = MakeStage(spec, OneRankOptions(), {});
  const MicrobatchTensors batch = TinyBatch(spec, {9, 4});
  stage->BeginStep();
  at::Tensor sums = NoSums();
  stage->Evaluate(batch, {}, sums);
  for (const auto& buffer : stage->buffers()) EXPECT_FALSE(buffer->own_gradient().defined());
  EXPECT_EQ(sums[0].item<double>(), ForwardBackward(*stage, batch));
}

TEST(StageNumbers, LossScaleScalesGradientsNotTheLoss) {
  const DecoderSpec spec = TinyDecoderSpec();
  const MicrobatchTensors batch = TinyBatch(spec, {9});
  const auto stage = MakeStage(spec, OneRankOptions(), {});
  const double loss = ForwardBackward(*stage, batch, 1);
  const std::vector<at::Tensor> full = Gradients(*stage);
  EXPECT_EQ(ForwardBackward(*stage, batch, 0.25), loss);
  const std::vector<at::Tensor> quarter = Gradients(*stage);
  for (size_t i = 0; i < full.size(); ++i) EXPECT_TRUE((quarter[i] * 4).equal(full[i])) << i;
}

}  // namespace
}  // namespace trireme
