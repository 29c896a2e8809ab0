#include "trainer/loop/weight_average.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <exception>

#include "kernels/base/ops.h"
#include "kernels/base/thread_pool.h"

namespace trireme {
namespace {

constexpr int64_t kAverageGrain = 65536;

// average += (weights - average) * share, both float32.
void MoveTowards(at::Tensor average, const at::Tensor& weights, double share) {
  if (average.is_cuda()) {
    average.lerp_(weights, share);
    return;
  }
  float* to = average.mutable_data_ptr<float>();
  const float* from = weights.const_data_ptr<float>();
  const auto part = static_cast<float>(share);
  ParallelRanges(average.numel(), kAverageGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += (from[i] - to[i]) * part;
  });
}

}  // namespace

WeightAverage::WeightAverage(const EmaConfig& config, std::vector<ParameterBuffer*> buffers)
    : config_(config), buffers_(std::move(buffers)) {
  for (const ParameterBuffer* buffer : buffers_) {
    averages_.push_back(buffer->trainable() ? at::zeros(buffer->own_weights().sizes(),
                                                        buffer->own_weights().options().dtype(at::kFloat))
                                            : at::Tensor());
  }
}

void WeightAverage::Follow(int64_t step) {
  if (step % config_.every_steps() != 0) return;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (!averages_[i].defined()) continue;
    const at::Tensor& weights = buffers_[i]->own_weights();
    if (empty()) {
      CopyConverted(weights, averages_[i]);
    } else {
      MoveTowards(averages_[i], weights.to(at::kFloat), 1 - config_.decay());
    }
  }
  ++updates_;
}

const at::Tensor& WeightAverage::Of(const ParameterBuffer* buffer) const {
  return averages_[std::find(buffers_.begin(), buffers_.end(), buffer) - buffers_.begin()];
}

WeightAverage::InPlace::InPlace(const WeightAverage& average) : average_(average) {
  for (size_t i = 0; i < average_.buffers_.size(); ++i) {
    ParameterBuffer* buffer = average_.buffers_[i];
    weights_.emplace_back();
    if (!average_.averages_[i].defined()) continue;
    at::Tensor own = buffer->own_weights();
    weights_.back() = own.clone();
    CopyConverted(average_.averages_[i], own);
    buffer->Publish(/*converted=*/false);
  }
}

WeightAverage::InPlace::~InPlace() {
  if (std::uncaught_exceptions() > 0) return;  // The job ends: nobody would take part in publishing.
  for (size_t i = 0; i < average_.buffers_.size(); ++i) {
    if (!weights_[i].defined()) continue;
    at::Tensor own = average_.buffers_[i]->own_weights();
    CopyConverted(weights_[i], own);
    average_.buffers_[i]->Publish(/*converted=*/false);
  }
}

int64_t WeightAverage::MemoryBytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& average : averages_) bytes += average.defined() ? average.nbytes() : 0;
  return bytes;
}

}  // namespace trireme
