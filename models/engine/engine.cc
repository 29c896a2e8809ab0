// Long because training, evaluation and generation ask the same stages for different things.
#include "models/engine/engine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "kernels/base/device.h"
#include "kernels/base/ops.h"
#include "launch/base/log.h"
#include "models/blocks/decoder.h"
#include "models/engine/memory_estimate.h"
#include "models/spec/parameters.h"
#include "parallel/comm/agreement.h"
#include "parallel/pipeline/lower.h"

namespace trireme {
namespace {

std::vector<double> GatherDoubles(ProcessGroup& group, double value) {
  at::Tensor mine = at::empty({1}, at::TensorOptions().dtype(at::kDouble));
  mine.mutable_data_ptr<double>()[0] = value;
  at::Tensor all = at::empty({group.size()}, mine.options());
  group.AllGather(all, mine).Wait();
  const double* data = all.const_data_ptr<double>();
  return std::vector<double>(data, data + group.size());
}

// Whatever path tokens come by, none lies beyond what the model's position tables hold.
void CheckPositions(const std::vector<int64_t>& positions, const DecoderSpec& model) {
  const auto largest = std::max_element(positions.begin(), positions.end());
  TRIREME_CHECK(largest == positions.end() || *largest < model.max_positions, "position ", *largest, " in a model of ",
                model.max_positions);
}

// All pairs share the pipeline group on CPUs, where sends wait for nobody.
std::function<PipelineLink(int, int)> MakeLinks(Mesh& mesh, const Schedule& schedule) {
  const int own = mesh.coordinate(Axis::kPipeline);
  if (!mesh.device().is_cuda())
    return [all = mesh.group({Axis::kPipeline}), own](int from, int to) {
      return PipelineLink{all, from == own ? to : from};
    };
  std::map<std::pair<int, int>, std::shared_ptr<ProcessGroup>> groups;
  for (int from = 0; from < schedule.num_ranks(); ++from) {
    for (int to = 0; to < schedule.num_ranks(); ++to) {
      if (from == to || LinkOrder(schedule, from, to).empty()) continue;
      std::vector<int> part_of(schedule.num_ranks(), -1);
      part_of[from] = part_of[to] = 0;
      groups[{from, to}] = mesh.Split(Axis::kPipeline, part_of, absl::StrCat("pipeline(", from, " to ", to, ")"));
    }
  }
  return [groups, own](int from, int to) {
    const int other = from == own ? to : from;
    return PipelineLink{groups.at({from, to}), other > own ? 1 : 0};
  };
}

// What counts the loads of experts; null: there are none. Collective over the job.
std::unique_ptr<ExpertLoads> MakeLoads(const EnginePlan& plan, Mesh& mesh) {
  std::vector<ExpertLayer> layers;
  const std::vector<int64_t> experts = plan.model.experts();
  for (size_t layer = 0; layer < experts.size(); ++layer) {
    if (experts[layer] > 0) layers.push_back({BlockName(static_cast<int64_t>(layer)), experts[layer]});
  }
  if (layers.empty()) return nullptr;
  return std::make_unique<ExpertLoads>(
      std::move(layers), plan.router,
      mesh.group({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard, Axis::kContext, Axis::kTensor}),
      mesh.group({Axis::kTensor}), mesh.group({Axis::kContext, Axis::kTensor}), mesh.device());
}

// Tokens of the microbatch that only fill its sequences.
int64_t NumFilling(const Microbatch& m) { return std::accumulate(m.filling.begin(), m.filling.end(), int64_t{0}); }

// [T]: 0 where a token only fills its sequence of `length`, else 1.
std::vector<int64_t> TokensOf(const Microbatch& m, int64_t length) {
  std::vector<int64_t> is_token(m.tokens.size(), 1);
  for (size_t s = 0; s < m.filling.size(); ++s) {
    const auto end = is_token.begin() + static_cast<int64_t>(s + 1) * length;
    std::fill(end - m.filling[s], end, 0);
  }
  return is_token;
}

}  // namespace

double SumOverRanks(ProcessGroup& group, double value) {
  double sum = 0;
  for (double part : GatherDoubles(group, value)) sum += part;
  return sum;
}

ProcessGroup& Engine::loss_group() const {
  return *mesh_.host_group({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard, Axis::kContext});
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EnginePlan given, Mesh& mesh, const Extensions& extensions) {
  std::unique_ptr<Engine> model(new Engine(std::move(given), mesh));
  const EnginePlan& plan = model->plan_;
  model->device_ = mesh.device();
  if (plan.deterministic) UseDeterministicKernels();
  BufferOptions options;
  options.shard = plan.storage.shard;
  options.reduce_every_microbatch = plan.storage.reduce_every_microbatch;
  options.compute = plan.storage.compute;
  options.master_weights = plan.storage.master_weights;
  options.reduce = plan.storage.reduce;
  options.gather_group = mesh.group({Axis::kDataShard, Axis::kContext});
  options.reduce_group = mesh.second_group({Axis::kDataShard, Axis::kContext});
  options.replicate_group = mesh.group({Axis::kDataReplicate});
  options.tensor_group = mesh.group({Axis::kTensor});
  options.device = model->device_;
  if (plan.model.quantization.has_value())
    options.dequantized = std::make_shared<DequantizedValues>(options.compute, options.device);
  const int tensor = mesh.shape()[Axis::kTensor];
  for (const AttentionShape& shape : plan.model.attentions()) {
    if (tensor <= shape.kv_heads || options.head_replica_groups.count(shape.kv_heads) > 0) continue;
    std::vector<int> head_of(tensor);
    for (int t = 0; t < tensor; ++t) head_of[t] = static_cast<int>(t * shape.kv_heads / tensor);
    options.head_replica_groups[shape.kv_heads] =
        mesh.Split(Axis::kTensor, head_of, absl::StrCat("tensor(same of ", shape.kv_heads, " heads)"));
  }
  model->context_group_ = mesh.group({Axis::kContext});
  model->loads_ = MakeLoads(plan, mesh);
  const std::vector<AttentionArguments> examples =
      ExampleAttentions(plan.model, tensor, options.compute, model->device_);
  ASSIGN_OR_RETURN(model->attention_, ChooseAttention(extensions.attention_backends, plan.attention, examples));
  if (model->device_.is_cuda() && plan.attention == "auto" && model->attention_.name == MathAttention().name &&
      mesh.control().rank() == 0) {
    Warning(
        "kernels.attention: \"math\" is used, slow and with memory for whole matrices of scores, because \"flash\" ",
        SupportsAll(FlashAttention(), examples).message());
  }
  for (const AttentionArguments& example : examples) {
    if (mesh.shape()[Axis::kContext] == 1) break;
    const absl::Status supported = SupportsContext(model->attention_, plan.context_method, example);
    if (!supported.ok()) {
      return Error(ExitCode::kConfig, "parallel.context_method: ", supported.message(),
                   "; use context_method: GATHER or another kernels.attention");
    }
  }
  BufferOptions expert_options = options;
  expert_options.tensor_group = mesh.expert_group();
  expert_options.gather_group = mesh.expert_data_group();
  expert_options.reduce_group = mesh.expert_data_group(/*second=*/true);
  expert_options.head_replica_groups.clear();
  model->BuildStages(options, expert_options);
  return model;
}

void Engine::BuildStages(BufferOptions options, const BufferOptions& expert_options) {
  const Schedule& schedule = plan_.schedule;
  const int own = mesh_.coordinate(Axis::kPipeline), last = schedule.num_stages() - 1;
  const int first_rank = schedule.rank_of_stage[0], last_rank = schedule.rank_of_stage[last];
  if (plan_.model.tied_embeddings && first_rank != last_rank) {
    std::vector<int> ends(schedule.num_ranks(), -1);
    ends[first_rank] = ends[last_rank] = 0;
    options.tied_group = mesh_.Split(Axis::kPipeline, ends, "pipeline(tied)");
  }
  StageOptions stage_options;
  stage_options.recompute = plan_.recompute.blocks;
  stage_options.keep = plan_.recompute.keep;
  stage_options.offload = plan_.recompute.offload && plan_.recompute.blocks && device_.is_cuda();
  // Offload without recomputation is the recipe's to tell.
  if (plan_.recompute.offload && plan_.recompute.blocks && !device_.is_cuda() && mesh_.control().rank() == 0)
    Warning("recompute.offload has no effect on a CPU, whose memory is the host's");
  stage_options.z_loss = plan_.z_loss;
  stage_options.loads = loads_.get();
  stage_options.loss_chunk_tokens = LossChunkTokens(plan_, device_.type());
  stage_options.device = device_;

  std::map<int, std::unique_ptr<Stage>> stages;
  UnitRange range;
  range.end = 0;
  range.whole_embedding = first_rank == last_rank;
  for (int s = 0; s <= last; ++s) {
    range.begin = range.end;
    range.end += plan_.stage_units[s];
    if (schedule.rank_of_stage[s] != own) continue;
    DecoderUnits part = BuildDecoder(plan_.model, options, attention_, range, &expert_options);
    for (const auto& buffer : part.buffers) buffers_.push_back(buffer.get());
    if (s == 0 && plan_.model.tied_embeddings) range.embedding = part.buffers[0].get();
    StageOptions own_options = stage_options;
    if (s > 0 && range.embedding != nullptr) own_options.reduced_earlier = {range.embedding};
    stages[s] = std::make_unique<Stage>(std::move(part.units), std::move(part.buffers), std::move(own_options));
  }
  for (size_t i = 0; i < buffers_.size(); ++i) {
    for (const Segment& segment : buffers_[i]->unique_segments()) {
      if (buffers_[i]->specs()[segment.parameter].trainable) buffer_of_gradient_.push_back(static_cast<int>(i));
    }
  }

  ExecutorOptions executor;
  LowerOptions lowering;
  lowering.reshard = options.shard == ShardLevel::kParameters;
  lowering.reduce_every_microbatch = options.reduce_every_microbatch;
  executor.schedule = Lower(schedule, lowering);
  executor.rank = own;
  executor.link = MakeLinks(mesh_, schedule);
  const int64_t tensor = mesh_.shape()[Axis::kTensor], hidden = plan_.model.hidden_size;
  const at::TensorOptions carry = at::TensorOptions().dtype(options.compute).device(device_);
  executor.empty_carry = [=](const MicrobatchTensors& batch) {
    return at::empty({batch.tokens.size(0) / tensor, hidden}, carry);
  };
  executor_ = std::make_unique<PipelineExecutor>(std::move(executor), std::move(stages));
}

void Engine::Initialize() {
  for (ParameterBuffer* buffer : buffers_) {
    buffer->Initialize(plan_.seed);
    buffer->Publish(/*converted=*/false);
  }
  InitializeDerived();
}

void Engine::InitializeDerived() {
  for (auto& [index, stage] : executor_->stages()) {
    stage->InitializeDerived([this] { mesh_.log().Beat("filling in weights that follow from others"); });
  }
}

std::vector<int64_t> Engine::RotaryPositions(const std::vector<int64_t>& positions,
                                             const std::vector<int32_t>& cu_seqlens, int64_t beyond) const {
  std::vector<int64_t> rows = positions;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    if (cu_seqlens[s + 1] - cu_seqlens[s] <= beyond) continue;
    for (int32_t i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i)
      rows[static_cast<size_t>(i)] += plan_.model.max_positions;
  }
  return rows;
}

MicrobatchTensors Engine::ToDevice(Microbatch m, UploadBlock& upload) const {
  const int ranks = mesh_.shape()[Axis::kContext], rank = mesh_.coordinate(Axis::kContext);
  MicrobatchTensors batch;
  batch.max_seqlen = m.max_seqlen;
  batch.sequence_tokens = plan_.sequence_length / ranks;
  const int64_t length = plan_.sequence_length, tokens = static_cast<int64_t>(m.tokens.size());
  // Where fine-tuning learns answers only, most of the head's products would be for nothing.
  const auto with_target = [&](const std::vector<int64_t>& targets) {
    std::vector<int64_t> found;
    for (size_t i = 0; i < targets.size(); ++i) {
      if (targets[i] >= 0) found.push_back(static_cast<int64_t>(i));
    }
    return found.size() == targets.size() ? at::Tensor() : upload.Add(std::move(found));
  };
  std::vector<int64_t> own;
  if (ranks > 1) own = LocalTokens(tokens, length, ranks, rank);
  const auto part = [&](std::vector<int64_t> whole) {
    if (ranks == 1) return whole;
    std::vector<int64_t> values;
    for (int64_t index : own) values.push_back(whole[index]);
    return values;
  };
  if (loads_ != nullptr && NumFilling(m) > 0) batch.is_token = upload.Add(part(TokensOf(m, length)));
  batch.tokens = upload.Add(part(std::move(m.tokens)));
  std::vector<int64_t> targets = part(std::move(m.targets));
  batch.with_target = with_target(targets);
  CheckPositions(m.positions, plan_.model);
  batch.targets = upload.Add(std::move(targets));
  if (const int64_t beyond = plan_.model.second_rotation_beyond(); beyond > 0)
    batch.rotary_positions = upload.Add(part(RotaryPositions(m.positions, m.cu_seqlens, beyond)));
  batch.positions = upload.Add(part(std::move(m.positions)));
  if (plan_.model.adapter != nullptr && plan_.model.adapter->dropout > 0) {
    std::vector<int64_t> numbers(tokens);
    std::iota(numbers.begin(), numbers.end(), m.first_sample * length);
    batch.numbers = upload.Add(part(std::move(numbers)));
  }
  if (ranks > 1) {
    const ContextMethod method = plan_.context_method;
    for (const int64_t window : plan_.model.windows()) {
      batch.contexts[window] = std::make_shared<ContextAttention>(
          context_group_.get(), PlanContext(method, m.cu_seqlens, length, window, ranks, rank), upload);
    }
  }
  batch.cu_seqlens = upload.Add(std::move(m.cu_seqlens));
  return batch;
}

DeviceBatch Engine::Upload(StepBatch batch) const {
  DeviceBatch uploaded;
  UploadBlock upload(device_);
  for (Microbatch& microbatch : batch.microbatches) {
    uploaded.own_targets += static_cast<double>(microbatch.num_targets);
    uploaded.own_tokens += static_cast<double>(static_cast<int64_t>(microbatch.tokens.size()) - NumFilling(microbatch));
    uploaded.microbatches.push_back(ToDevice(std::move(microbatch), upload));
  }
  upload.Start();
  return uploaded;
}

absl::Status CheckTargets(double targets) {
  if (targets > 0) return absl::OkStatus();
  return Error(ExitCode::kData,
               "data: no token of this step's global batch has a target; is every document one token long?");
}

void Engine::ForwardBackward(const DeviceBatch& batch, double targets, double tokens) {
  targets_ = targets;
  if (loads_ != nullptr) loads_->Begin(tokens);
  decision_.Begin(static_cast<int64_t>(buffer_of_gradient_.size()));
  at::Tensor sums = decision_.loss_sums();
  for (auto& [index, stage] : executor_->stages()) stage->BeginStep();
  executor_->Step(batch.microbatches, 1.0 / targets, sums);
  for (auto& [index, stage] : executor_->stages()) stage->FinishGradients(static_cast<int>(batch.microbatches.size()));
}

absl::StatusOr<Loss> Engine::ForwardBackward(const StepBatch& batch) {
  const DeviceBatch uploaded = Upload(batch);
  const double targets =
      SumOverRanks(*mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard}), uploaded.own_targets);
  RETURN_IF_ERROR(CheckTargets(targets));
  const double tokens = SumOverRanks(*mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard}), uploaded.own_tokens);
  ForwardBackward(uploaded, targets, tokens);
  const at::Tensor sums = HostCopy(decision_.loss_sums()).Wait();
  const double* local = sums.const_data_ptr<double>();
  Loss loss;
  loss.mean = SumOverRanks(loss_group(), local[0]) / targets;
  loss.targets = static_cast<int64_t>(targets);
  if (plan_.z_loss > 0) loss.z_loss = plan_.z_loss * SumOverRanks(loss_group(), local[1]) / targets;
  return loss;
}

PendingResults Engine::Decide(double max_norm) {
  std::vector<at::Tensor> gradients;
  for (const ParameterBuffer* buffer : buffers_) {
    if (!buffer->own_gradient().defined()) continue;
    const std::vector<at::Tensor> own = buffer->UniqueGradients();
    gradients.insert(gradients.end(), own.begin(), own.end());
  }
  PendingResults results = decision_.Decide(gradients, targets_, max_norm);
  if (loads_ == nullptr) return results;
  loads_->Sum();
  results.AddLoads(*loads_);
  return results;
}

GradientNorms Engine::ParameterGradientNorms() {
  std::vector<ParameterSpec> all = DecoderParameters(plan_.model);
  const std::vector<ParameterSpec> added = AdapterParameters(plan_.model);
  all.insert(all.end(), added.begin(), added.end());
  all.erase(std::remove_if(all.begin(), all.end(), [](const ParameterSpec& spec) { return !spec.trainable; }),
            all.end());
  std::map<std::string, int64_t> index;
  for (const ParameterSpec& spec : all) index.emplace(spec.name, static_cast<int64_t>(index.size()));
  const auto count = static_cast<int64_t>(all.size());
  at::Tensor squares = at::zeros({count}, at::TensorOptions().dtype(at::kDouble));
  for (ParameterBuffer* buffer : buffers_) {
    if (!buffer->own_gradient().defined()) continue;
    for (const Segment& s : buffer->unique_segments()) {
      if (!buffer->specs()[s.parameter].trainable) continue;
      squares.mutable_data_ptr<double>()[index.at(buffer->specs()[s.parameter].name)] +=
          SquaredNorm(buffer->own_gradient().narrow(0, s.own_begin, s.numel));
    }
  }
  mesh_.host_group({Axis::kPipeline, Axis::kDataShard, Axis::kContext, Axis::kTensor})
      ->AllReduce(squares, ReduceOp::kSum)
      .Wait();
  GradientNorms norms;
  for (const ParameterSpec& spec : all)
    norms.emplace_back(spec.name, std::sqrt(squares.const_data_ptr<double>()[index.at(spec.name)]));
  return norms;
}

Engine::EvaluationSums Engine::Evaluate(const std::vector<Microbatch>& microbatches) {
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  const DeviceBatch batch = Upload({microbatches});
  executor_->Evaluate(batch.microbatches, sums);
  EvaluationSums result;
  result.loss_sum = SumOverRanks(loss_group(), HostCopy(sums).Wait().const_data_ptr<double>()[0]);
  result.targets = static_cast<int64_t>(
      SumOverRanks(*mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard}), batch.own_targets));
  return result;
}

int64_t Engine::Padding(int64_t tokens) const {
  const int64_t ranks = mesh_.shape()[Axis::kTensor];
  return (ranks - tokens % ranks) % ranks;
}

at::Tensor Engine::Logits(const std::vector<std::vector<int64_t>>& new_tokens, KvCache& cache, bool every_token) {
  std::vector<int64_t> counts, tokens, positions, wanted;
  for (size_t s = 0; s < new_tokens.size(); ++s) {
    counts.push_back(static_cast<int64_t>(new_tokens[s].size()));
    for (size_t i = 0; i < new_tokens[s].size(); ++i) {
      if (every_token || i + 1 == new_tokens[s].size()) wanted.push_back(static_cast<int64_t>(tokens.size()));
      positions.push_back(cache.length(static_cast<int64_t>(s)) + static_cast<int64_t>(i));
      tokens.push_back(new_tokens[s][i]);
    }
  }
  const int64_t padding = Padding(static_cast<int64_t>(tokens.size()));
  tokens.resize(tokens.size() + padding, 0);
  positions.resize(tokens.size(), 0);
  CheckPositions(positions, plan_.model);
  cache.Begin(counts, padding);
  MicrobatchTensors batch;
  UploadBlock upload(device_);
  batch.tokens = upload.Add(std::move(tokens));
  // A sequence has one table for life: that of the length that it may reach.
  if (const int64_t beyond = plan_.model.second_rotation_beyond(); beyond > 0) {
    std::vector<int64_t> rotary = positions;
    size_t token = 0;
    for (size_t s = 0; s < counts.size(); ++s) {
      const int64_t added = cache.capacity(static_cast<int64_t>(s)) > beyond ? plan_.model.max_positions : 0;
      for (int64_t i = 0; i < counts[s]; ++i) rotary[token++] += added;
    }
    batch.rotary_positions = upload.Add(std::move(rotary));
  }
  batch.positions = upload.Add(std::move(positions));
  batch.wanted = upload.Add(std::move(wanted));
  upload.Start();
  batch.cu_seqlens = cache.cu_seqlens();
  batch.max_seqlen = cache.max_new_tokens();
  const at::Tensor logits = executor_->Generate(batch, cache);
  return logits.defined() ? logits.cpu() : logits;
}

double Engine::SequenceLoss(const std::vector<int64_t>& tokens, const std::vector<int64_t>& targets) {
  const auto count = static_cast<int32_t>(tokens.size());
  const auto all = static_cast<int32_t>(count + Padding(count));
  std::vector<int64_t> padded_tokens = tokens, padded_targets = targets, positions;
  padded_tokens.resize(all, 0);
  padded_targets.resize(all, kIgnoredTarget);
  for (int64_t i = 0; i < all; ++i) positions.push_back(i < count ? i : 0);
  std::vector<int32_t> ends = {0, count};
  if (all > count) ends.push_back(all);
  CheckPositions(positions, plan_.model);
  MicrobatchTensors batch;
  UploadBlock upload(device_);
  batch.tokens = upload.Add(std::move(padded_tokens));
  batch.targets = upload.Add(std::move(padded_targets));
  if (const int64_t beyond = plan_.model.second_rotation_beyond(); beyond > 0)
    batch.rotary_positions = upload.Add(RotaryPositions(positions, ends, beyond));
  batch.positions = upload.Add(std::move(positions));
  batch.cu_seqlens = upload.Add(std::move(ends));
  upload.Start();
  batch.max_seqlen = std::max(count, all - count);
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  executor_->Evaluate({batch}, sums);
  return HostCopy(sums).Wait().const_data_ptr<double>()[0];
}

std::string Engine::DescribeNonFinite(const StepResults& results) {
  // Gradients flow backward: of several units with non-finite gradients the last one in the model had them first.
  double bad = -1;
  for (size_t i = 0; i < results.own_squares.size(); ++i) {
    if (!std::isfinite(results.own_squares[i])) bad = static_cast<double>(buffer_of_gradient_[i]);
  }
  const std::vector<double> losses = GatherDoubles(mesh_.control(), results.own_loss_sum);
  const std::vector<double> units = GatherDoubles(mesh_.control(), bad);
  // Pipeline ranks hold different units: each names its own.
  const std::vector<std::string> names =
      GatherBytes(mesh_.control(), bad < 0 ? "" : buffers_[static_cast<size_t>(bad)]->name());
  std::string text;
  for (size_t rank = 0; rank < units.size(); ++rank) {
    const bool bad_loss = !std::isfinite(losses[rank]);
    if (!bad_loss && units[rank] < 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", "rank ", rank, ": ");
    if (bad_loss) absl::StrAppend(&text, "loss ", losses[rank]);
    if (units[rank] >= 0) absl::StrAppend(&text, bad_loss ? ", " : "", "gradient of unit ", names[rank]);
  }
  return text.empty() ? "the sum over ranks overflowed" : text;
}

}  // namespace trireme
