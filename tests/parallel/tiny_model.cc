#include "tests/parallel/tiny_model.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "models/engine/engine.h"
#include "parallel/comm/mpi_group.h"
#include "tests/kernels/decisions.h"
#include "tests/models/tiny_decoder.h"

namespace trireme {
namespace {

template <typename T>
at::Tensor Copied(const std::vector<T>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, c10::CppTypeToScalarType<T>::value);
  std::copy(values.begin(), values.end(), tensor.template mutable_data_ptr<T>());
  return tensor;
}

void Merge(std::map<std::string, at::Tensor> from, std::map<std::string, at::Tensor>* into) { into->merge(from); }

}  // namespace

std::string Layout::ToString() const {
  return absl::StrCat(ShardLevelName(shard), " accumulation=", accumulation, recompute ? " recompute" : "",
                      reduce_last ? " reduce_last" : " reduce_every", tied ? " tied" : " untied",
                      document_mask ? " document_mask" : "", compute == at::kBFloat16 ? " bf16" : "",
                      master_weights ? "" : " no_master", adamw ? " adamw" : " sgd");
}

DecoderSpec TinySpec(bool tied) {
  DecoderSpec spec = LlamaSpec({2, 64, 4, 2, 100, 211, kTinySequenceLength});
  spec.initializer_range = 0.1;
  spec.tied_embeddings = tied;
  return spec;
}

Microbatch TinyMicrobatch(int64_t step, int64_t first, int64_t count, bool document_mask) {
  Microbatch microbatch;
  for (int64_t sequence = first; sequence < first + count; ++sequence) {
    // A linear congruential walk that a model can learn part of.
    Sample sample;
    uint64_t state = static_cast<uint64_t>(step * kTinyGlobalBatch + sequence) * 7919 + 17;
    for (int64_t i = 0; i <= kTinySequenceLength; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sample.tokens.push_back(i % 2 == 0 ? (state >> 33) % 211 : (sample.tokens.back() * 3 + 1) % 211);
    }
    for (int64_t at = 5 + sequence % 7; at <= kTinySequenceLength; at += 9 + sequence % 4) {
      sample.document_starts.push_back(static_cast<int32_t>(at));
    }
    AppendSequence(sample, document_mask, &microbatch);
  }
  return microbatch;
}

std::map<std::string, at::Tensor> WholeTensors(const ParameterBuffer& buffer, const at::Tensor& own) {
  std::map<std::string, at::Tensor> whole;
  const at::Tensor values = own.to(at::kFloat);
  std::vector<at::Tensor> by_parameter;
  for (const ParameterSpec& spec : buffer.specs()) {
    by_parameter.push_back(at::zeros(spec.shape, at::TensorOptions().dtype(at::kFloat)));
  }
  for (const Segment& segment : buffer.unique_segments()) {
    by_parameter[segment.parameter]
        .view({-1})
        .narrow(0, segment.parameter_begin, segment.numel)
        .copy_(values.narrow(0, segment.own_begin, segment.numel));
  }
  for (size_t i = 0; i < by_parameter.size(); ++i) {
    // Every element is on one rank and zero elsewhere: adding the bits as integers moves them unchanged.
    at::Tensor bits = by_parameter[i].view(at::kInt);
    buffer.options().gather_group->AllReduce(bits, ReduceOp::kSum).Wait();
    whole[buffer.specs()[i].name] = by_parameter[i];
  }
  return whole;
}

TinyTrainer::TinyTrainer(const Layout& layout, Mesh* mesh,
                         std::function<void(const std::string& action, int unit)> observer)
    : layout_(layout) {
  BufferOptions options;
  options.shard = layout.shard;
  options.reduce_every_microbatch = !layout.reduce_last;
  options.compute = layout.compute;
  options.master_weights = layout.master_weights;
  options.poison_resharded = true;
  if (mesh == nullptr) {
    options.gather_group = options.reduce_group = options.replicate_group = data_group_ = MakeSelfGroup("alone");
  } else {
    options.gather_group = mesh->group({Axis::kDataShard, Axis::kContext});
    options.reduce_group = mesh->second_group({Axis::kDataShard, Axis::kContext});
    options.replicate_group = mesh->group({Axis::kDataReplicate});
    data_group_ = mesh->group({Axis::kDataReplicate, Axis::kDataShard});
    data_rank_ = mesh->data_rank();
    data_ranks_ = mesh->num_data_ranks();
  }
  DecoderUnits decoder = BuildDecoder(TinySpec(layout.tied), options, MathAttention());
  StageOptions stage_options;
  stage_options.recompute = layout.recompute;
  stage_options.loss_chunk_tokens = 100;
  stage_options.observer = std::move(observer);
  stage_ = std::make_unique<Stage>(std::move(decoder.units), std::move(decoder.buffers), stage_options);
  std::vector<ParameterBuffer*> buffers;
  for (const auto& buffer : stage_->buffers()) {
    buffer->Initialize(/*seed=*/42);
    buffer->Publish(/*converted=*/false);
    buffers.push_back(buffer.get());
  }
  OptimizerConfig config;
  if (layout.adamw) {
    config.mutable_adamw()->set_eps(1e-4);
  } else {
    config.mutable_sgd()->set_momentum(0);
  }
  optimizer_ = std::make_unique<Optimizer>(config, std::move(buffers), /*seed=*/42);
}

double TinyTrainer::ForwardBackward(int64_t step) {
  const double targets =
      static_cast<double>(TinyMicrobatch(step, 0, kTinyGlobalBatch, layout_.document_mask).num_targets);
  const int64_t count = kTinyGlobalBatch / (data_ranks_ * layout_.accumulation);
  stage_->BeginStep();
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble));
  for (int i = 0; i < layout_.accumulation; ++i) {
    const Microbatch m =
        TinyMicrobatch(step, (data_rank_ * layout_.accumulation + i) * count, count, layout_.document_mask);
    MicrobatchState state;
    state.batch.tokens = Copied(m.tokens);
    state.batch.targets = Copied(m.targets);
    state.batch.positions = Copied(m.positions);
    state.batch.cu_seqlens = Copied(m.cu_seqlens);
    state.batch.max_seqlen = m.max_seqlen;
    stage_->Forward(state, {}, 1 / targets, sums);
    stage_->Backward(state, {}, 1 / targets, sums, /*last=*/i + 1 == layout_.accumulation);
  }
  stage_->FinishGradients(layout_.accumulation);
  return SumOverRanks(*data_group_, sums.const_data_ptr<double>()[0]) / targets;
}

void TinyTrainer::Update(int64_t step) {
  const at::Tensor decision = DecisionTo(/*clip_factor=*/1, step, AdamW().beta1(), AdamW().beta2());
  optimizer_->Step(step, layout_.adamw ? 3e-3 : 0.3, decision);
}

std::map<std::string, at::Tensor> TinyTrainer::Gradients() const {
  std::map<std::string, at::Tensor> all;
  for (const auto& buffer : stage_->buffers()) Merge(WholeTensors(*buffer, buffer->own_gradient()), &all);
  return all;
}

std::map<std::string, at::Tensor> TinyTrainer::Weights() const {
  std::map<std::string, at::Tensor> all;
  for (const auto& buffer : stage_->buffers()) Merge(WholeTensors(*buffer, buffer->own_weights()), &all);
  return all;
}

}  // namespace trireme
