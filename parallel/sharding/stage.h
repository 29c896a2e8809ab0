// parallel/sharding/stage.h
// Consecutive units on this rank, and the walk over them. Autograd lives inside one unit at a time.
#ifndef TRIREME_PARALLEL_SHARDING_STAGE_H_
#define TRIREME_PARALLEL_SHARDING_STAGE_H_

#include <memory>
#include <string>
#include <vector>

#include "parallel/sharding/unit.h"

namespace trireme {

// Everything that lives from a microbatch's forward to its backward.
struct MicrobatchState {
  MicrobatchTensors batch;
  std::vector<Carry> inputs;   // per unit, detached
  std::vector<Carry> outputs;  // per unit, with their graph; empty where the unit is run again in backward
};

struct StageOptions {
  bool recompute = false;  // run recomputable units again in backward instead of keeping what they saved
  double z_loss = 0;
  int64_t loss_chunk_tokens = 512;
  at::Device device = at::kCPU;
  // Told of every action in order ("unshard 3", "forward 2", "backward 2", "reduce 2", "reshard 2"), for tests and
  // traces. May be empty.
  std::function<void(const std::string& action, int unit)> observer;
};

class Stage {
 public:
  Stage(std::vector<std::unique_ptr<Unit>> units, std::vector<std::unique_ptr<ParameterBuffer>> buffers,
        StageOptions options);

  const std::vector<std::unique_ptr<ParameterBuffer>>& buffers() const { return buffers_; }
  const std::vector<std::unique_ptr<Unit>>& units() const { return units_; }
  StageOptions& options() { return options_; }

  // Starts a step: gradients begin from nothing.
  void BeginStep();
  // Collective over the gather groups. Gathers unit i + 1 while unit i computes. Adds into loss_sums [2].
  void Forward(MicrobatchState& state, double loss_scale, at::Tensor& loss_sums);
  // Collective over gather and reduce groups. Consumes the state. last: no further microbatch follows in this step.
  void Backward(MicrobatchState& state, double loss_scale, at::Tensor& loss_sums, bool last);
  // Completes all reductions; own gradients are final.
  void FinishGradients(int num_microbatches);
  // Loss only; nothing is kept.
  void Evaluate(const MicrobatchTensors& batch, at::Tensor& loss_sums);

 private:
  UnitContext Context(const MicrobatchTensors& batch, Phase phase, double loss_scale, at::Tensor* loss_sums) const;
  void StartUnshard(int unit);
  void FinishUnshard(int unit);
  void Reshard(int unit);
  void Observe(const char* action, int unit) const {
    if (options_.observer) options_.observer(action, unit);
  }

  std::vector<std::unique_ptr<Unit>> units_;
  std::vector<std::unique_ptr<ParameterBuffer>> buffers_;
  std::vector<std::vector<ParameterBuffer*>>
      reduced_after_;  // per unit: buffers whose last gradient comes from it (walking backward)
  StageOptions options_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_STAGE_H_
