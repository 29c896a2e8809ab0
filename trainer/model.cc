#include "trainer/model.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "models/decoder.h"

namespace trireme {
namespace {

at::ScalarType DtypeOf(PrecisionConfig::Format format) {
  return format == PrecisionConfig::BF16 ? at::kBFloat16 : at::kFloat;
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

}  // namespace

double SumOverRanks(ProcessGroup& group, double value) {
  double sum = 0;
  for (double part : GatherDoubles(group, value)) sum += part;
  return sum;
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
  options.device = model->device_;
  ASSIGN_OR_RETURN(model->attention_, ChooseAttention(extensions.attention_backends, config.kernels().attention(),
                                                      ExampleAttention(recipe.model, options.compute, model->device_)));
  DecoderUnits decoder = BuildDecoder(recipe.model, options, model->attention_);
  StageOptions stage_options;
  stage_options.recompute = config.recompute().policy() == RecomputeConfig::BLOCK;
  stage_options.z_loss = config.loss().z_loss();
  stage_options.loss_chunk_tokens = config.kernels().loss_chunk_tokens();
  stage_options.device = model->device_;
  model->stage_ = std::make_unique<Stage>(std::move(decoder.units), std::move(decoder.buffers), stage_options);
  return model;
}

void Model::Initialize() {
  for (ParameterBuffer* buffer : buffers()) {
    buffer->Initialize(recipe_.config.seed());
    buffer->Publish(/*converted=*/false);
  }
}

std::vector<ParameterBuffer*> Model::buffers() {
  std::vector<ParameterBuffer*> buffers;
  for (const auto& buffer : stage_->buffers()) buffers.push_back(buffer.get());
  return buffers;
}

MicrobatchTensors Model::ToDevice(const Microbatch& m) const {
  return {CopyOf(m.tokens, device_), CopyOf(m.targets, device_), CopyOf(m.positions, device_),
          CopyOf(m.cu_seqlens, device_), m.max_seqlen};
}

absl::StatusOr<Loss> Model::ForwardBackward(const StepBatch& batch) {
  double local_targets = 0;
  for (const Microbatch& microbatch : batch.microbatches) local_targets += static_cast<double>(microbatch.num_targets);
  ProcessGroup& data_group = *mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard});
  const double targets = SumOverRanks(data_group, local_targets);
  if (targets == 0)
    return Error(ExitCode::kData,
                 "data: no token of this step's global batch has a target; is every document one token long?");

  stage_->BeginStep();
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  for (size_t i = 0; i < batch.microbatches.size(); ++i) {
    MicrobatchState state;
    state.batch = ToDevice(batch.microbatches[i]);
    stage_->Forward(state, 1.0 / targets, sums);
    stage_->Backward(state, 1.0 / targets, sums, /*last=*/i + 1 == batch.microbatches.size());
  }
  stage_->FinishGradients(static_cast<int>(batch.microbatches.size()));
  const at::Tensor host = sums.cpu();
  const double* local = host.const_data_ptr<double>();
  last_local_loss_sum_ = local[0];
  Loss loss;
  loss.mean = SumOverRanks(data_group, local[0]) / targets;
  loss.targets = static_cast<int64_t>(targets);
  if (recipe_.config.loss().z_loss() > 0)
    loss.z_loss = recipe_.config.loss().z_loss() * SumOverRanks(data_group, local[1]) / targets;
  return loss;
}

GradNorm Model::ClipGradNorm(double max_norm) {
  double local = 0;
  for (ParameterBuffer* buffer : buffers()) {
    if (buffer->own_gradient().defined())
      local += SquaredNorm(buffer->own_gradient().narrow(0, buffer->unique_begin(), buffer->unique_numel()));
  }
  GradNorm norm;
  norm.total = std::sqrt(SumOverRanks(*mesh_.host_group({Axis::kDataShard, Axis::kContext}), local));
  if (max_norm > 0) norm.clip_factor = std::min(1.0, max_norm / (norm.total + 1e-6));
  return norm;
}

Model::EvaluationSums Model::Evaluate(const std::vector<Microbatch>& microbatches) {
  at::Tensor sums = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(device_));
  double targets = 0;
  for (const Microbatch& microbatch : microbatches) {
    stage_->Evaluate(ToDevice(microbatch), sums);
    targets += static_cast<double>(microbatch.num_targets);
  }
  ProcessGroup& data_group = *mesh_.host_group({Axis::kDataReplicate, Axis::kDataShard});
  EvaluationSums result;
  result.loss_sum = SumOverRanks(data_group, sums.cpu().const_data_ptr<double>()[0]);
  result.targets = static_cast<int64_t>(SumOverRanks(data_group, targets));
  return result;
}

std::string Model::DescribeNonFinite(double local_loss_sum) {
  // Gradients flow backward: of several units with non-finite gradients the last one in the model had them first.
  const std::vector<ParameterBuffer*> all = buffers();
  double bad = -1;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i]->own_gradient().defined() && !std::isfinite(SquaredNorm(all[i]->own_gradient())))
      bad = static_cast<double>(i);
  }
  const std::vector<double> losses = GatherDoubles(mesh_.control(), local_loss_sum);
  const std::vector<double> units = GatherDoubles(mesh_.control(), bad);
  std::string text;
  for (size_t rank = 0; rank < units.size(); ++rank) {
    const bool bad_loss = !std::isfinite(losses[rank]);
    if (!bad_loss && units[rank] < 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", "rank ", rank, ": ");
    if (bad_loss) absl::StrAppend(&text, "loss ", losses[rank]);
    if (units[rank] >= 0)
      absl::StrAppend(&text, bad_loss ? ", " : "", "gradient of unit ", all[static_cast<size_t>(units[rank])]->name());
  }
  return text.empty() ? "the sum over ranks overflowed" : text;
}

}  // namespace trireme
