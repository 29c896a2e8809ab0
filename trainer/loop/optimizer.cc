#include "trainer/loop/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <cstddef>

#include "kernels/base/ops.h"

namespace trireme {
namespace {

at::Tensor Part(const at::Tensor& tensor, const Segment& run) {
  return tensor.defined() ? tensor.narrow(0, run.own_begin, run.numel) : tensor;
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, std::vector<ParameterBuffer*> buffers, uint64_t seed)
    : config_(config), buffers_(std::move(buffers)), seed_(seed) {
  std::vector<std::string> names;
  if (config_.has_adamw()) names = {"exp_avg", "exp_avg_sq"};
  if (config_.has_sgd() && config_.sgd().momentum() > 0) names = {"velocity"};
  for (ParameterBuffer* buffer : buffers_) {
    std::vector<at::Tensor> tensors;
    for (const std::string& name : names) {
      if (!buffer->trainable()) break;
      tensors.push_back(at::zeros(buffer->own_weights().sizes(), buffer->own_weights().options().dtype(at::kFloat)));
      states_.push_back({buffer, name, tensors.back()});
    }
    by_buffer_.push_back(std::move(tensors));
  }
}

void Optimizer::Step(int64_t step, double learning_rate, const at::Tensor& decision, const ExpertLoads* loads) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (!buffers_[i]->own_gradient().defined()) continue;  // frozen
    if (loads != nullptr && config_.router_bias_rate() > 0) Balance(*buffers_[i], decision, *loads);
    if (config_.has_adamw()) {
      StepAdamW(i, step, learning_rate, decision);
    } else {
      StepSgd(i, learning_rate, decision);
    }
    buffers_[i]->Publish(/*converted=*/true);
  }
}

void Optimizer::Balance(const ParameterBuffer& buffer, const at::Tensor& decision, const ExpertLoads& loads) const {
  constexpr int64_t kApply = offsetof(UpdateDecision, apply) / sizeof(double);
  const at::Tensor rate = decision[kApply] * config_.router_bias_rate();  // 0 where this update is left out
  for (const Segment& segment : buffer.segments()) {
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    if (!spec.balanced) continue;
    const at::Tensor counts = loads.Counts(spec.name);
    const at::Tensor below = (counts.mean() - counts).sign().narrow(0, segment.parameter_begin, segment.numel);
    at::Tensor bias = Part(buffer.own_weights(), segment);
    bias.add_((below * rate).to(bias.scalar_type()));
  }
}

void Optimizer::StepAdamW(size_t index, int64_t step, double learning_rate, const at::Tensor& decision) {
  const ParameterBuffer& buffer = *buffers_[index];
  const AdamW& c = config_.adamw();
  AdamWRule rule;
  rule.beta1 = static_cast<float>(c.beta1());
  rule.beta2 = static_cast<float>(c.beta2());
  rule.one_minus_beta1 = static_cast<float>(1 - c.beta1());
  rule.one_minus_beta2 = static_cast<float>(1 - c.beta2());
  rule.eps = static_cast<float>(c.eps());
  const at::Tensor &weights = buffer.own_weights(), &gradient = buffer.own_gradient();
  const at::Tensor &m = by_buffer_[index][0], &v = by_buffer_[index][1];
  const at::Tensor copy =
      buffer.own_compute().scalar_type() != weights.scalar_type() ? buffer.own_compute() : at::Tensor();
  for (const Segment& segment : buffer.segments()) {
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    if (!spec.trainable) continue;
    rule.rate = learning_rate * spec.rate;
    rule.keep = spec.decay ? static_cast<float>(1 - rule.rate * c.weight_decay()) : 1.0f;
    if (weights.scalar_type() != at::kBFloat16) {
      AdamWUpdate(rule, decision, Part(weights, segment), Part(gradient, segment), Part(m, segment), Part(v, segment),
                  Part(copy, segment));
      continue;
    }
    const RandomKey key = MakeRandomKey(seed_, RandomPurpose::kStochasticRounding, StableId(spec.name.c_str()), step);
    AdamWUpdateBf16(rule, decision, Part(weights, segment), Part(gradient, segment), Part(m, segment), Part(v, segment),
                    key, buffer.WholeIndexOf(segment));
  }
}

void Optimizer::StepSgd(size_t index, double learning_rate, const at::Tensor& decision) {
  const ParameterBuffer& buffer = *buffers_[index];
  const Sgd& c = config_.sgd();
  const at::Tensor& weights = buffer.own_weights();
  const at::Tensor copy =
      buffer.own_compute().scalar_type() != weights.scalar_type() ? buffer.own_compute() : at::Tensor();
  const at::Tensor velocity = by_buffer_[index].empty() ? at::Tensor() : by_buffer_[index][0];
  for (const Segment& segment : buffer.segments()) {
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    if (!spec.trainable) continue;
    const double rate = learning_rate * spec.rate;
    SgdRule rule;
    rule.rate = static_cast<float>(rate);
    rule.momentum = static_cast<float>(c.momentum());
    rule.keep = spec.decay ? static_cast<float>(1 - rate * c.weight_decay()) : 1.0f;
    SgdUpdate(rule, decision, Part(weights, segment), Part(buffer.own_gradient(), segment), Part(velocity, segment),
              Part(copy, segment));
  }
}

int64_t Optimizer::MemoryBytes() const {
  int64_t bytes = 0;
  for (const State& state : states_) bytes += state.tensor.nbytes();
  return bytes;
}

}  // namespace trireme
