// parallel/sharding/stage.h
// Consecutive units on this rank (a pipeline chunk), and the walk over them. Autograd lives inside one unit at a time.
#ifndef TRIREME_PARALLEL_SHARDING_STAGE_H_
#define TRIREME_PARALLEL_SHARDING_STAGE_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "parallel/sharding/unit.h"

namespace trireme {

// Everything that lives from a microbatch's forward to its backward.
struct MicrobatchState {
  MicrobatchTensors batch;
  std::vector<Carry> inputs;      // per unit, detached
  std::vector<Carry> outputs;     // per unit, with their graph; empty where the unit is run again in backward
  std::vector<KeptResults> kept;  // per unit; what its second pass need not compute
  std::vector<ParameterBuffer::DeferredTasks> weight_gradients;  // per unit; what InputGradient left to do
};

struct StageOptions {
  bool recompute = false;      // run recomputable units again in backward instead of keeping what they saved
  std::set<std::string> keep;  // with recompute: results that stay (parallel/layers/kept_results.h)
  bool offload = false;        // with recompute: what stays waits in host memory (pinned, for a GPU)
  double z_loss = 0;
  ExpertLoads* loads = nullptr;  // outlives the stage; null: nobody asks
  int64_t loss_chunk_tokens = 512;
  at::Device device = at::kCPU;
  // Told of every action in order ("unshard 3", "forward 2", "backward 2", "reduce 2", "reshard 2"), for tests and
  // traces. May be empty.
  std::function<void(const std::string& action, int unit)> observer;
  // Buffers that also a unit of an earlier stage on this rank uses: their gradients are reduced there.
  std::vector<const ParameterBuffer*> reduced_earlier;
};

// The first unit of the model takes an empty carry, the last returns a scalar; a stage in the middle passes carries on.
class Stage {
 public:
  Stage(std::vector<std::unique_ptr<Unit>> units, std::vector<std::unique_ptr<ParameterBuffer>> buffers,
        StageOptions options);

  const std::vector<std::unique_ptr<ParameterBuffer>>& buffers() const { return buffers_; }
  const std::vector<std::unique_ptr<Unit>>& units() const { return units_; }
  StageOptions& options() { return options_; }

  // Unit::InitializeDerived() of all. Collective over the gather groups. alive: called after each unit.
  void InitializeDerived(const std::function<void()>& alive);

  // Starts a step: gradients begin from nothing.
  void BeginStep();
  // Collective over the gather groups. Gathers unit i + 1 while unit i computes. Adds into loss_sums [2] where the
  // stage has the loss head. Returns what goes to the next stage.
  Carry Forward(MicrobatchState& state, Carry input, double loss_scale, at::Tensor& loss_sums);
  // Collective over gather and reduce groups. Consumes the state. output_gradient: from the next stage; empty for the
  // last. last: no further microbatch follows in this step. Returns the gradient of Forward's input.
  Carry Backward(MicrobatchState& state, Carry output_gradient, double loss_scale, at::Tensor& loss_sums, bool last);
  // Backward in two halves: the first leaves gradients of parameters to the second, which touches no other.
  Carry InputGradient(MicrobatchState& state, Carry output_gradient, double loss_scale, at::Tensor& loss_sums);
  void WeightGradient(MicrobatchState& state, bool last);
  // Completes all reductions; own gradients are final.
  void FinishGradients(int num_microbatches);
  // Loss only; nothing is kept.
  Carry Evaluate(const MicrobatchTensors& batch, Carry input, at::Tensor& loss_sums);
  // New tokens behind those in `cache`, which has begun this pass. The stage with the head returns logits.
  Carry Generate(const MicrobatchTensors& batch, Carry input, KvCache& cache);

  // Starts gathering what a forward (or a backward) of this stage needs first. Collective over the gather groups.
  void Prefetch(bool backward);
  // Gives up what is still gathered.
  void Release();

 private:
  UnitContext Context(const MicrobatchTensors& batch, Phase phase, double loss_scale, at::Tensor* loss_sums) const;
  Carry WalkBack(MicrobatchState& state, Carry gradients, double loss_scale, at::Tensor& loss_sums, bool defer,
                 bool last);
  Carry WalkWithoutGraph(const UnitContext& context, Carry carry);
  // Starts it: transfers_.Join() makes the current stream wait.
  void MoveKept(MicrobatchState& state, int unit, at::Device to);
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
  TransferQueue transfers_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_STAGE_H_
