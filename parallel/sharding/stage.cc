#include "parallel/sharding/stage.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "launch/status.h"

namespace trireme {

Stage::Stage(std::vector<std::unique_ptr<Unit>> units, std::vector<std::unique_ptr<ParameterBuffer>> buffers,
             StageOptions options)
    : units_(std::move(units)), buffers_(std::move(buffers)), options_(std::move(options)) {
  std::vector<ParameterBuffer*> seen;
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

void Stage::BeginStep() {
  for (auto& buffer : buffers_) buffer->BeginStep();
}

void Stage::Forward(MicrobatchState& state, double loss_scale, at::Tensor& loss_sums) {
  const int count = static_cast<int>(units_.size());
  state.inputs.assign(count, {});
  state.outputs.assign(count, {});
  const UnitContext context = Context(state.batch, Phase::kTrain, loss_scale, &loss_sums);
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device)).requires_grad_();
  Carry carry;
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
    carry = units_[i]->Forward(context, std::move(input), anchor);
    if (!again) state.outputs[i] = carry;
    // The unit whose backward comes next stays gathered.
    if (i + 1 < count) Reshard(i);
  }
}

void Stage::Backward(MicrobatchState& state, double loss_scale, at::Tensor& loss_sums, bool last) {
  const int count = static_cast<int>(units_.size());
  const UnitContext context = Context(state.batch, Phase::kTrain, loss_scale, &loss_sums);
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device)).requires_grad_();
  Carry gradients;  // of the loss with respect to the output of unit i
  std::vector<ParameterBuffer*> reducing;
  for (int i = count - 1; i >= 0; --i) {
    StartUnshard(i - 1);
    FinishUnshard(i);
    if (state.outputs[i].empty()) {
      Observe("recompute", i);
      at::AutoGradMode grad_mode(true);
      for (at::Tensor& tensor : state.inputs[i]) tensor = tensor.detach().requires_grad_();
      state.outputs[i] = units_[i]->Forward(context, state.inputs[i], anchor);
    }
    Observe("backward", i);
    if (i == count - 1) gradients = {at::ones_like(state.outputs[i][0])};
    torch::autograd::backward(state.outputs[i], gradients);
    state.outputs[i].clear();
    gradients.clear();
    for (at::Tensor& tensor : state.inputs[i]) gradients.push_back(std::move(tensor.mutable_grad()));
    state.inputs[i].clear();
    for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
    reducing = reduced_after_[i];
    if (!reducing.empty()) Observe("reduce", i);
    for (ParameterBuffer* buffer : reducing) buffer->StartReduce(last);
    Reshard(i);
  }
  for (ParameterBuffer* buffer : reducing) buffer->FinishReduce();
}

void Stage::FinishGradients(int num_microbatches) {
  for (auto& buffer : buffers_) buffer->FinishGradients(num_microbatches);
}

void Stage::Evaluate(const MicrobatchTensors& batch, at::Tensor& loss_sums) {
  at::AutoGradMode no_grad(false);
  const int count = static_cast<int>(units_.size());
  const UnitContext context = Context(batch, Phase::kEvaluate, 1, &loss_sums);
  const at::Tensor anchor = at::empty({0}, at::TensorOptions().device(options_.device));
  Carry carry;
  StartUnshard(0);
  for (int i = 0; i < count; ++i) {
    StartUnshard(i + 1);
    FinishUnshard(i);
    carry = units_[i]->Forward(context, std::move(carry), anchor);
    Reshard(i);
  }
}

}  // namespace trireme
