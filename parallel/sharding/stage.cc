#include "parallel/sharding/stage.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "kernels/base/device.h"
#include "launch/base/status.h"

namespace trireme {

Stage::Stage(std::vector<std::unique_ptr<Unit>> units, std::vector<std::unique_ptr<ParameterBuffer>> buffers,
             StageOptions options)
    : units_(std::move(units)),
      buffers_(std::move(buffers)),
      options_(std::move(options)),
      transfers_(options_.device) {
  std::vector<const ParameterBuffer*> seen = options_.reduced_earlier;
  for (const auto& unit : units_) {
    std::vector<ParameterBuffer*> firsts;
    for (ParameterBuffer* buffer : unit->buffers()) {
      if (std::find(seen.begin(), seen.end(), buffer) != seen.end()) continue;
      seen.push_back(buffer);
      firsts.push_back(buffer);
    }
    reduced_after_.push_back(std::move(firsts));
  }
}

UnitContext Stage::Context(const MicrobatchTensors& batch, Phase phase, double loss_scale,
                           at::Tensor* loss_sums) const {
  UnitContext context;
  context.batch = &batch;
  context.phase = phase;
  context.loss_scale = loss_scale;
  context.z_loss = options_.z_loss;
  context.loads = phase == Phase::kTrain ? options_.loads : nullptr;
  context.loss_chunk_tokens = options_.loss_chunk_tokens;
  context.loss_sums = loss_sums;
  return context;
}

void Stage::StartUnshard(int unit) {
  if (unit < 0 || unit >= static_cast<int>(units_.size())) return;
  Observe("unshard", unit);
  for (ParameterBuffer* buffer : units_[unit]->buffers()) buffer->StartUnshard();
}

void Stage::FinishUnshard(int unit) {
  for (ParameterBuffer* buffer : units_[unit]->buffers()) buffer->FinishUnshard();
}

void Stage::Reshard(int unit) {
  Observe("reshard", unit);
  for (ParameterBuffer* buffer : units_[unit]->buffers()) buffer->Reshard();
}

void Stage::InitializeDerived(const std::function<void()>& alive) {
  for (int i = 0; i < static_cast<int>(units_.size()); ++i) {
    FinishUnshard(i);
    units_[i]->InitializeDerived();
    for (ParameterBuffer* buffer : units_[i]->buffers()) {
      if (buffer->trainable()) buffer->Publish(/*converted=*/false);
    }
    Reshard(i);
    alive();
  }
}

void Stage::BeginStep() {
  for (auto& buffer : buffers_) buffer->BeginStep();
}

Carry Stage::Forward(MicrobatchState& state, Carry carry, double loss_scale, at::Tensor& loss_sums) {
  const int count = static_cast<int>(units_.size());
  state.inputs.assign(count, {});
  state.outputs.assign(count, {});
  state.kept.assign(count, KeptResults(&options_.keep));
  UnitContext context = Context(state.batch, Phase::kTrain, loss_scale, &loss_sums);
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device)).requires_grad_();
  StartUnshard(0);
  for (int i = 0; i < count; ++i) {
    StartUnshard(i + 1);
    FinishUnshard(i);
    Observe("forward", i);
    const bool again = options_.recompute && units_[i]->recomputable();
    Carry input;
    for (const at::Tensor& tensor : carry) input.push_back(tensor.detach().requires_grad_(!again));
    state.inputs[i] = input;
    at::AutoGradMode grad_mode(!again);
    context.kept = again ? &state.kept[i] : nullptr;
    carry = units_[i]->Forward(context, std::move(input), anchor);
    if (!again) state.outputs[i] = carry;
    if (again && options_.offload) MoveKept(state, i, at::kCPU);
    // The unit whose backward comes next stays gathered, if that reads it.
    if (i + 1 < count || !units_[i]->backward_reads_parameters()) Reshard(i);
  }
  for (at::Tensor& tensor : carry) tensor = tensor.detach();
  return carry;
}

void Stage::MoveKept(MicrobatchState& state, int unit, at::Device to) {
  if (!state.outputs[unit].empty()) return;  // Not run again: its graph holds what it needs.
  for (at::Tensor& tensor : state.inputs[unit]) tensor = transfers_.Copy(tensor, to);
  for (auto& [name, tensors] : state.kept[unit].results()) {
    for (at::Tensor& tensor : tensors) tensor = transfers_.Copy(tensor, to);
  }
}

Carry Stage::WalkBack(MicrobatchState& state, Carry gradients, double loss_scale, at::Tensor& loss_sums, bool defer,
                      bool last) {
  const int count = static_cast<int>(units_.size());
  UnitContext context = Context(state.batch, Phase::kTrain, loss_scale, &loss_sums);
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device)).requires_grad_();
  if (defer) state.weight_gradients.assign(count, {});
  std::vector<ParameterBuffer*> reducing;
  if (options_.offload) MoveKept(state, count - 1, options_.device);
  for (int i = count - 1; i >= 0; --i) {
    const bool reads = units_[i]->backward_reads_parameters();
    if (i > 0 && units_[i - 1]->backward_reads_parameters()) StartUnshard(i - 1);
    if (options_.offload) transfers_.Join();
    if (options_.offload && i > 0) MoveKept(state, i - 1, options_.device);
    if (reads) FinishUnshard(i);
    if (state.outputs[i].empty()) {
      Observe("recompute", i);
      at::AutoGradMode grad_mode(true);
      for (at::Tensor& tensor : state.inputs[i]) tensor = tensor.detach().requires_grad_();
      state.kept[i].recording = false;
      context.kept = &state.kept[i];
      state.outputs[i] = units_[i]->Forward(context, state.inputs[i], anchor);
    }
    Observe(defer ? "input_gradient" : "backward", i);
    if (gradients.empty()) gradients = {at::ones_like(state.outputs[i][0])};
    for (ParameterBuffer* buffer : units_[i]->buffers())
      buffer->set_deferred(defer ? &state.weight_gradients[i] : nullptr);
    torch::autograd::backward(state.outputs[i], gradients);
    for (ParameterBuffer* buffer : units_[i]->buffers()) buffer->set_deferred(nullptr);
    state.outputs[i].clear();
    gradients.clear();
    for (at::Tensor& tensor : state.inputs[i]) gradients.push_back(std::move(tensor.mutable_grad()));
    state.inputs[i].clear();
    if (!defer) {
      for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
      reducing = reduced_after_[i];
      if (!reducing.empty()) Observe("reduce", i);
      for (ParameterBuffer* buffer : reducing) buffer->StartReduce(last);
    }
    if (reads) Reshard(i);
  }
  for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
  return gradients;
}

Carry Stage::Backward(MicrobatchState& state, Carry output_gradient, double loss_scale, at::Tensor& loss_sums,
                      bool last) {
  return WalkBack(state, std::move(output_gradient), loss_scale, loss_sums, /*defer=*/false, last);
}

Carry Stage::InputGradient(MicrobatchState& state, Carry output_gradient, double loss_scale, at::Tensor& loss_sums) {
  return WalkBack(state, std::move(output_gradient), loss_scale, loss_sums, /*defer=*/true, /*last=*/false);
}

void Stage::WeightGradient(MicrobatchState& state, bool last) {
  std::vector<ParameterBuffer*> reducing;
  for (int i = static_cast<int>(units_.size()) - 1; i >= 0; --i) {
    Observe("weight_gradient", i);
    at::AutoGradMode no_grad(false);
    for (std::function<void()>& task : state.weight_gradients[i]) {
      task();
      task = nullptr;  // Lets go of the activations it held.
    }
    state.weight_gradients[i].clear();
    for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
    reducing = reduced_after_[i];
    if (!reducing.empty()) Observe("reduce", i);
    for (ParameterBuffer* buffer : reducing) buffer->StartReduce(last);
  }
  for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
}

void Stage::Prefetch(bool backward) {
  const int unit = backward ? static_cast<int>(units_.size()) - 1 : 0;
  if (!backward || units_[unit]->backward_reads_parameters()) StartUnshard(unit);
}

void Stage::Release() {
  for (int i = 0; i < static_cast<int>(units_.size()); ++i) Reshard(i);
}

void Stage::FinishGradients(int num_microbatches) {
  for (auto& buffer : buffers_) buffer->FinishGradients(num_microbatches);
}

Carry Stage::Evaluate(const MicrobatchTensors& batch, Carry carry, at::Tensor& loss_sums) {
  return WalkWithoutGraph(Context(batch, Phase::kEvaluate, 1, &loss_sums), std::move(carry));
}

Carry Stage::Generate(const MicrobatchTensors& batch, Carry carry, KvCache& cache) {
  UnitContext context = Context(batch, Phase::kGenerate, 1, nullptr);
  context.cache = &cache;
  return WalkWithoutGraph(context, std::move(carry));
}

Carry Stage::WalkWithoutGraph(const UnitContext& context, Carry carry) {
  at::AutoGradMode no_grad(false);
  const int count = static_cast<int>(units_.size());
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device));
  StartUnshard(0);
  for (int i = 0; i < count; ++i) {
    StartUnshard(i + 1);
    FinishUnshard(i);
    carry = units_[i]->Forward(context, std::move(carry), anchor);
    Reshard(i);
  }
  return carry;
}

}  // namespace trireme
