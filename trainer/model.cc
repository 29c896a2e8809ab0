#include "trainer/model.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "launch/log.h"
#include "models/decoder.h"
#include "parallel/pipeline/lower.h"
#include "trainer/agreement.h"

namespace trireme {
namespace {

at::ScalarType DtypeOf(PrecisionConfig::Format format) {
  return format == PrecisionConfig::BF16 ? at::kBFloat16 : at::kFloat;
}

ContextMethod MethodOf(const ParallelConfig& config) {
  return config.context_method() == ParallelConfig::RING ? ContextMethod::kRing : ContextMethod::kGather;
}

std::vector<double> GatherDoubles(ProcessGroup& group, double value) {
  at::Tensor mine = at::empty({1}, at::TensorOptions().dtype(at::kDouble));
  mine.mutable_data_ptr<double>()[0] = value;
  at::Tensor all = at::empty({group.size()}, mine.options());
  group.AllGather(all, mine).Wait();
  const double* data = all.const_data_ptr<double>();
  return std::vector<double>(data, data + group.size());
}

template <typename T>
at::Tensor CopyOf(const std::vector<T>& values, at::Device device) {
  at::Tensor tensor =
      at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  std::copy(values.begin(), values.end(), tensor.template mutable_data_ptr<T>());
  return tensor.to(device);
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

}  // namespace

double SumOverRanks(ProcessGroup& group, double value) {
  double sum = 0;
  for (double part : GatherDoubles(group, value)) sum += part;
  return sum;
}

ProcessGroup& Model::loss_group() const {
  return *mesh_.host_group({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard, Axis::kContext});
}

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const Recipe& recipe, Mesh& mesh, const Extensions& extensions) {
  std::unique_ptr<Model> model(new Model(recipe, mesh));
  const RunConfig& config = recipe.config;
  model->device_ = mesh.device();
  if (config.kernels().deterministic()) UseDeterministicKernels();
  BufferOptions options;
  options.shard = config.parallel().shard();
  options.reduce_every_microbatch = config.parallel().reduce_gradients() == ParallelConfig::EVERY_MICROBATCH;
  options.compute = DtypeOf(config.precision().compute());
  options.master_weights = config.precision().master_weights();
  options.reduce = DtypeOf(config.precision().reduce());
  options.gather_group = mesh.group({Axis::kDataShard, Axis::kContext});
  options.reduce_group = mesh.second_group({Axis::kDataShard, Axis::kContext});
  options.replicate_group = mesh.group({Axis::kDataReplicate});
  options.tensor_group = mesh.group({Axis::kTensor});
  options.device = model->device_;
  if (recipe.model.quantization.has_value())
    options.dequantized = std::make_shared<DequantizedValues>(options.compute, options.device);
  if (const int tensor = mesh.shape()[Axis::kTensor]; tensor > recipe.model.num_kv_heads) {
    std::vector<int> head_of(tensor);
    for (int t = 0; t < tensor; ++t) head_of[t] = static_cast<int>(t * recipe.model.num_kv_heads / tensor);
    options.head_replica_group =
        mesh.Split(Axis::kTensor, head_of, absl::StrCat("tensor(same of ", recipe.model.num_kv_heads, " heads)"));
  }
  model->context_group_ = mesh.group({Axis::kContext});
  DecoderSpec local = recipe.model;
  local.num_heads /= mesh.shape()[Axis::kTensor];
  local.num_kv_heads = std::max<int64_t>(1, local.num_kv_heads / mesh.shape()[Axis::kTensor]);
  const AttentionArguments example = ExampleAttention(local, options.compute, model->device_);
  ASSIGN_OR_RETURN(model->attention_,
                   ChooseAttention(extensions.attention_backends, config.kernels().attention(), example));
  if (model->device_.is_cuda() && config.kernels().attention() == "auto" &&
      model->attention_.name == MathAttention().name && mesh.control().rank() == 0) {
    Warning(
        "kernels.attention: \"math\" is used, slow and with memory for whole matrices of scores, because \"flash\" ",
        FlashAttention().supports(example).message());
  }
  if (mesh.shape()[Axis::kContext] > 1) {
    const absl::Status supported = SupportsContext(model->attention_, MethodOf(config.parallel()), example);
    if (!supported.ok()) {
      return Error(ExitCode::kConfig, "parallel.context_method: ", supported.message(),
                   "; use context_method: GATHER or another kernels.attention");
    }
  }
  model->BuildStages(options);
  return model;
}

void Model::BuildStages(BufferOptions options) {
  const RunConfig& config = recipe_.config;
  const Schedule& schedule = recipe_.schedule;
  const int own = mesh_.coordinate(Axis::kPipeline), last = schedule.num_stages() - 1;
  const int first_rank = schedule.rank_of_stage[0], last_rank = schedule.rank_of_stage[last];
  if (recipe_.model.tied_embeddings && first_rank != last_rank) {
    std::vector<int> ends(schedule.num_ranks(), -1);
    ends[first_rank] = ends[last_rank] = 0;
    options.tied_group = mesh_.Split(Axis::kPipeline, ends, "pipeline(tied)");
  }
  StageOptions stage_options;
  const RecomputeConfig& recompute = config.recompute();
  stage_options.recompute = recompute.policy() != RecomputeConfig::NONE;
  if (recompute.policy() == RecomputeConfig::SELECTIVE) {
    stage_options.keep.insert(recompute.keep().begin(), recompute.keep().end());
    if (stage_options.keep.empty()) stage_options.keep.insert(kKeepAttention);
  }
  stage_options.offload = recompute.offload() && stage_options.recompute && device_.is_cuda();
  if (recompute.offload() && !stage_options.offload && mesh_.control().rank() == 0) {
    Warning("recompute.offload has no effect ",
            device_.is_cuda() ? "without recompute.policy BLOCK or SELECTIVE" : "on a CPU, whose memory is the host's");
  }
  stage_options.z_loss = config.loss().z_loss();
  stage_options.loss_chunk_tokens = config.kernels().loss_chunk_tokens();
  stage_options.device = device_;

  std::map<int, std::unique_ptr<Stage>> stages;
  UnitRange range;
  range.end = 0;
  range.whole_embedding = first_rank == last_rank;
  for (int s = 0; s <= last; ++s) {
    range.begin = range.end;
    range.end += recipe_.stage_units[s];
    if (schedule.rank_of_stage[s] != own) continue;
    DecoderUnits part = BuildDecoder(recipe_.model, options, attention_, range);
    for (const auto& buffer : part.buffers) buffers_.push_back(buffer.get());
    if (s == 0 && recipe_.model.tied_embeddings) range.embedding = part.buffers[0].get();
    StageOptions own_options = stage_options;
    if (s > 0 && range.embedding != nullptr) own_options.reduced_earlier = {range.embedding};
    stages[s] = std::make_unique<Stage>(std::move(part.units), std::move(part.buffers), std::move(own_options));
  }

  ExecutorOptions executor;
  LowerOptions lowering;
  lowering.reshard = options.shard == ParallelConfig::PARAMETERS;
  lowering.reduce_every_microbatch = options.reduce_every_microbatch;
  executor.schedule = Lower(schedule, lowering);
  executor.rank = own;
  executor.link = MakeLinks(mesh_, schedule);
  const int64_t tensor = mesh_.shape()[Axis::kTensor], hidden = recipe_.model.hidden_size;
  const at::TensorOptions carry = at::TensorOptions().dtype(options.compute).device(device_);
  executor.empty_carry = [=](const MicrobatchTensors& batch) {
    return at::empty({batch.tokens.size(0) / tensor, hidden}, carry);
  };
  executor_ = std::make_unique<PipelineExecutor>(std::move(executor), std::move(stages));
}

void Model::Initialize() {
  for (ParameterBuffer* buffer : buffers_) {
    buffer->Initialize(recipe_.config.seed());
    buffer->Publish(/*converted=*/false);
  }
  InitializeDerived();
}

void Model::InitializeDerived() {
  for (auto& [index, stage] : executor_->stages()) {
    stage->InitializeDerived([this] { mesh_.log().Beat("filling in weights that follow from others"); });
  }
}

MicrobatchTensors Model::ToDevice(const Microbatch& m) const {
  const int ranks = mesh_.shape()[Axis::kContext], rank = mesh_.coordinate(Axis::kContext);
  MicrobatchTensors batch;
  batch.cu_seqlens = CopyOf(m.cu_seqlens, device_);
  batch.max_seqlen = m.max_seqlen;
  const int64_t length = recipe_.config.data().sequence_length();
  // Where fine-tuning learns answers only, most of the head's products would be for nothing.
  const auto with_target = [&](const std::vector<int64_t>& targets) {
    std::vector<int64_t> found;
    for (size_t i = 0; i < targets.size(); ++i) {
      if (targets[i] >= 0) found.push_back(static_cast<int64_t>(i));
    }
    return found.size() == targets.size() ? at::Tensor() : CopyOf(found, device_);
  };
  std::vector<int64_t> numbers;
  if (recipe_.config.adapter().lora_dropout() > 0) {
    numbers.resize(m.tokens.size());
    std::iota(numbers.begin(), numbers.end(), m.first_sample * length);
  }
  std::vector<int64_t> own;
  if (ranks > 1) own = LocalTokens(static_cast<int64_t>(m.tokens.size()), length, ranks, rank);
  const auto part = [&](const std::vector<int64_t>& whole) {
    if (ranks == 1) return whole;
    std::vector<int64_t> values;
    for (int64_t index : own) values.push_back(whole[index]);
    return values;
  };
  batch.tokens = CopyOf(part(m.tokens), device_);
  const std::vector<int64_t> targets = part(m.targets);
  batch.targets = CopyOf(targets, device_);
  batch.with_target = with_target(targets);
  batch.positions = CopyOf(part(m.positions), device_);
  if (!numbers.empty()) batch.numbers = CopyOf(part(numbers), device_);
  if (ranks == 1) return batch;
  const ContextMethod method = MethodOf(recipe_.config.parallel());
  for (const int64_t window : recipe_.model.windows()) {
    batch.contexts[window] = std::make_shared<ContextAttention>(
        context_group_.get(), PlanContext(method, m.cu_seqlens, length, window, ranks, rank), device_);
  }
  return batch;
}

absl::StatusOr<Loss> Model::ForwardBackward(const StepBatch& batch) {
  double local_targets = 0;
  for (const Microbatch& microbatch : batch.microbatches) local_targets += static_cast<double>(microbatch.num_targets);
  const double targets = SumOverRanks(*mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard}), local_targets);
  if (targets == 0)
    return Error(ExitCode::kData,
                 "data: no token of this step's global batch has a target; is every document one token long?");

  std::vector<MicrobatchTensors> microbatches;
  for (const Microbatch& microbatch : batch.microbatches) microbatches.push_back(ToDevice(microbatch));
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  for (auto& [index, stage] : executor_->stages()) stage->BeginStep();
  executor_->Step(microbatches, 1.0 / targets, sums);
  for (auto& [index, stage] : executor_->stages()) stage->FinishGradients(static_cast<int>(microbatches.size()));
  const at::Tensor host = sums.cpu();
  const double* local = host.const_data_ptr<double>();
  last_local_loss_sum_ = local[0];
  Loss loss;
  loss.mean = SumOverRanks(loss_group(), local[0]) / targets;
  loss.targets = static_cast<int64_t>(targets);
  if (recipe_.config.loss().z_loss() > 0)
    loss.z_loss = recipe_.config.loss().z_loss() * SumOverRanks(loss_group(), local[1]) / targets;
  return loss;
}

GradNorm Model::ClipGradNorm(double max_norm) {
  std::vector<at::Tensor> gradients;
  for (const ParameterBuffer* buffer : buffers_) {
    if (!buffer->own_gradient().defined()) continue;
    const std::vector<at::Tensor> own = buffer->UniqueGradients();
    gradients.insert(gradients.end(), own.begin(), own.end());
  }
  double local = 0;
  for (double square : SquaredNorms(gradients)) local += square;
  GradNorm norm;
  norm.total = std::sqrt(
      SumOverRanks(*mesh_.host_group({Axis::kPipeline, Axis::kDataShard, Axis::kContext, Axis::kTensor}), local));
  if (max_norm > 0) norm.clip_factor = std::min(1.0, max_norm / (norm.total + 1e-6));
  return norm;
}

GradientNorms Model::ParameterGradientNorms() {
  std::vector<ParameterSpec> all = DecoderParameters(recipe_.model);
  const std::vector<ParameterSpec> added = AdapterParameters(recipe_.model);
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

Model::EvaluationSums Model::Evaluate(const std::vector<Microbatch>& microbatches) {
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  double targets = 0;
  std::vector<MicrobatchTensors> batches;
  for (const Microbatch& microbatch : microbatches) {
    batches.push_back(ToDevice(microbatch));
    targets += static_cast<double>(microbatch.num_targets);
  }
  executor_->Evaluate(batches, sums);
  EvaluationSums result;
  result.loss_sum = SumOverRanks(loss_group(), sums.cpu().const_data_ptr<double>()[0]);
  result.targets =
      static_cast<int64_t>(SumOverRanks(*mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard}), targets));
  return result;
}

int64_t Model::Padding(int64_t tokens) const {
  const int64_t ranks = mesh_.shape()[Axis::kTensor];
  return (ranks - tokens % ranks) % ranks;
}

at::Tensor Model::Logits(const std::vector<std::vector<int64_t>>& new_tokens, KvCache& cache, bool every_token) {
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
  cache.Begin(counts, padding);
  MicrobatchTensors batch;
  batch.tokens = CopyOf(tokens, device_);
  batch.positions = CopyOf(positions, device_);
  batch.wanted = CopyOf(wanted, device_);
  batch.cu_seqlens = cache.cu_seqlens();
  batch.max_seqlen = cache.max_new_tokens();
  const at::Tensor logits = executor_->Generate(batch, cache);
  return logits.defined() ? logits.cpu() : logits;
}

double Model::SequenceLoss(const std::vector<int64_t>& tokens, const std::vector<int64_t>& targets) {
  const auto count = static_cast<int32_t>(tokens.size());
  const auto all = static_cast<int32_t>(count + Padding(count));
  std::vector<int64_t> padded_tokens = tokens, padded_targets = targets, positions;
  padded_tokens.resize(all, 0);
  padded_targets.resize(all, kIgnoredTarget);
  for (int64_t i = 0; i < all; ++i) positions.push_back(i < count ? i : 0);
  std::vector<int32_t> ends = {0, count};
  if (all > count) ends.push_back(all);
  MicrobatchTensors batch;
  batch.tokens = CopyOf(padded_tokens, device_);
  batch.targets = CopyOf(padded_targets, device_);
  batch.positions = CopyOf(positions, device_);
  batch.cu_seqlens = CopyOf(ends, device_);
  batch.max_seqlen = std::max(count, all - count);
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  executor_->Evaluate({batch}, sums);
  return sums.cpu().const_data_ptr<double>()[0];
}

std::string Model::DescribeNonFinite(double local_loss_sum) {
  // Gradients flow backward: of several units with non-finite gradients the last one in the model had them first.
  const std::vector<ParameterBuffer*>& all = buffers_;
  double bad = -1;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i]->own_gradient().defined() && !std::isfinite(SquaredNorm(all[i]->own_gradient())))
      bad = static_cast<double>(i);
  }
  const std::vector<double> losses = GatherDoubles(mesh_.control(), local_loss_sum);
  const std::vector<double> units = GatherDoubles(mesh_.control(), bad);
  // Pipeline ranks hold different units: each names its own.
  const std::vector<std::string> names =
      GatherBytes(mesh_.control(), bad < 0 ? "" : all[static_cast<size_t>(bad)]->name());
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
