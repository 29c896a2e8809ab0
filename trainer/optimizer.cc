#include "trainer/optimizer.h"

#include <ATen/ops/zeros.h>

#include <cmath>

#include "kernels/ops.h"

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

void Optimizer::Step(int64_t update, double learning_rate, double gradient_scale) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (!buffers_[i]->own_gradient().defined()) continue;  // frozen
    if (config_.has_adamw()) {
      StepAdamW(i, update, learning_rate, gradient_scale);
    } else {
      StepSgd(i, learning_rate, gradient_scale);
    }
    buffers_[i]->Publish(/*converted=*/true);
  }
}

void Optimizer::StepAdamW(size_t index, int64_t update, double learning_rate, double gradient_scale) {
  const ParameterBuffer& buffer = *buffers_[index];
  const AdamW& c = config_.adamw();
  AdamWStep s;
  s.gradient_scale = static_cast<float>(gradient_scale);
  s.beta1 = static_cast<float>(c.beta1());
  s.beta2 = static_cast<float>(c.beta2());
  s.one_minus_beta1 = static_cast<float>(1 - c.beta1());
  s.one_minus_beta2 = static_cast<float>(1 - c.beta2());
  const double correction = 1 - std::pow(c.beta1(), static_cast<double>(update));
  s.inverse_root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(c.beta2(), static_cast<double>(update))));
  s.eps = static_cast<float>(c.eps());
  const at::Tensor &weights = buffer.own_weights(), &gradient = buffer.own_gradient();
  const at::Tensor &m = by_buffer_[index][0], &v = by_buffer_[index][1];
  const at::Tensor copy =
      buffer.own_compute().scalar_type() != weights.scalar_type() ? buffer.own_compute() : at::Tensor();
  for (const Segment& segment : buffer.segments()) {
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    if (!spec.trainable) continue;
    const double rate = learning_rate * spec.rate;
    s.step_size = static_cast<float>(rate / correction);
    const float keep = spec.decay ? static_cast<float>(1 - rate * c.weight_decay()) : 1.0f;
    if (weights.scalar_type() != at::kBFloat16) {
      AdamWUpdate(s, keep, Part(weights, segment), Part(gradient, segment), Part(m, segment), Part(v, segment),
                  Part(copy, segment));
      continue;
    }
    const RandomKey key = MakeRandomKey(seed_, RandomPurpose::kStochasticRounding, StableId(spec.name.c_str()), update);
    for (const Segment& run : buffer.WholeRuns(segment)) {
      AdamWUpdateBf16(s, keep, Part(weights, run), Part(gradient, run), Part(m, run), Part(v, run), key,
                      run.parameter_begin);
    }
  }
}

void Optimizer::StepSgd(size_t index, double learning_rate, double gradient_scale) {
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
    const float keep = spec.decay ? static_cast<float>(1 - rate * c.weight_decay()) : 1.0f;
    SgdUpdate(static_cast<float>(gradient_scale), static_cast<float>(rate), static_cast<float>(c.momentum()), keep,
              Part(weights, segment), Part(buffer.own_gradient(), segment), Part(velocity, segment),
              Part(copy, segment));
  }
}

int64_t Optimizer::MemoryBytes() const {
  int64_t bytes = 0;
  for (const State& state : states_) bytes += state.tensor.nbytes();
  return bytes;
}

}  // namespace trireme
