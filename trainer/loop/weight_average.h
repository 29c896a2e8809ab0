// trainer/loop/weight_average.h
// The exponential moving average of the weights beside a run.
#ifndef TRIREME_TRAINER_LOOP_WEIGHT_AVERAGE_H_
#define TRIREME_TRAINER_LOOP_WEIGHT_AVERAGE_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "configs/run_config.pb.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// Of each buffer that is trained the average of this rank's own weights, float32, as
// torch.optim.swa_utils.get_ema_multi_avg_fn defines it: the first time the weights themselves, then
// average + (weights - average) (1 - decay).
class WeightAverage {
 public:
  // Buffers must outlive it.
  WeightAverage(const EmaConfig& config, std::vector<ParameterBuffer*> buffers);

  // After step `step` of the run, from 1. Does not wait for the device.
  void Follow(int64_t step);
  bool empty() const { return updates_ == 0; }
  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }  // for a run that is resumed

  // [own numel], for checkpoints; undefined of a buffer that is not trained.
  const at::Tensor& Of(const ParameterBuffer* buffer) const;

  // While it lives the buffers hold the averages in the place of their weights. Collective over the gather groups, in
  // the constructor and the destructor.
  class InPlace {
   public:
    explicit InPlace(const WeightAverage& average);
    ~InPlace();
    InPlace(const InPlace&) = delete;
    InPlace& operator=(const InPlace&) = delete;

   private:
    const WeightAverage& average_;
    std::vector<at::Tensor> weights_;  // those of the buffers
  };

  int64_t MemoryBytes() const;

 private:
  EmaConfig config_;
  std::vector<ParameterBuffer*> buffers_;
  std::vector<at::Tensor> averages_;  // of each
  int64_t updates_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_WEIGHT_AVERAGE_H_
