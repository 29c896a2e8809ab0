// models/engine/engine.h
// A model set up on this rank: its stages, and what training, evaluation and generation ask of it.
#ifndef TRIREME_MODELS_ENGINE_ENGINE_H_
#define TRIREME_MODELS_ENGINE_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sampling/loader.h"
#include "kernels/base/upload.h"
#include "models/engine/engine_plan.h"
#include "models/engine/extensions.h"
#include "models/engine/step_decision.h"
#include "parallel/comm/mesh.h"
#include "parallel/pipeline/executor.h"

namespace trireme {

// One step's microbatches on the device.
struct DeviceBatch {
  std::vector<MicrobatchTensors> microbatches;
  double own_targets = 0;  // of this rank's microbatches that carry loss
  double own_tokens = 0;   // of them that do not only fill a sequence
};

// kData where no target in the global batch carries loss.
absl::Status CheckTargets(double targets);

class Engine {
 public:
  // Collective over the job. Weights are zero until Initialize() or a load.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EnginePlan plan, Mesh& mesh, const Extensions& extensions);

  // Fills weights from the seed, the same for every layout. Collective.
  void Initialize();
  // Then, or once weights were loaded: fills those that follow from others (DoRA's magnitudes). Collective.
  void InitializeDerived();

  // ---- A training step, none of whose parts waits for the device ----
  // One copy, in the order of the current stream: made while the step before runs.
  DeviceBatch Upload(StepBatch batch) const;
  // Gradients of the mean loss over the global batch, which has this many targets and tokens, accumulated over all
  // microbatches and summed over data ranks. Collective.
  void ForwardBackward(const DeviceBatch& batch, double targets, double tokens);
  // Loss, gradient norm and what they decide about the update. max_norm 0: no clipping. Collective.
  PendingResults Decide(double max_norm);
  const at::Tensor& decision() const { return decision_.decision(); }  // for the optimizer
  const ExpertLoads* loads() const { return loads_.get(); }            // likewise; null: the model has no experts
  // What makes an update wrong, before the first step; unless set, the first number that is none stops all updates.
  void set_decision_rule(const DecisionRule& rule) { decision_.set_rule(rule); }
  // For a run that is resumed (StepDecision::Restore()).
  void RestoreUpdates(int64_t updates, int64_t skips) { decision_.Restore(updates, skips); }

  // ---- The same, waiting for the results. Collective. ----
  absl::StatusOr<Loss> ForwardBackward(const StepBatch& batch);  // CheckTargets()
  GradNorm ClipGradNorm(double max_norm) { return Decide(max_norm).Wait().norm; }

  // Every parameter's gradient norm in the model's order, before clipping. The result is the same on all ranks.
  // Collective.
  GradientNorms ParameterGradientNorms();

  // Sums over the targets of these microbatches on all data ranks. Collective; every rank brings the same number of
  // microbatches.
  struct EvaluationSums {
    double loss_sum = 0;
    int64_t targets = 0;
  };
  EvaluationSums Evaluate(const std::vector<Microbatch>& microbatches);

  // Runs new tokens of each sequence of `cache` behind those that it holds. Logits [rows, vocab] float32 on the CPU,
  // for the last new token of each sequence that has some, or for every new token; undefined on ranks without the loss
  // head. All ranks bring the same tokens; data and context ranks repeat each other's work. Collective.
  at::Tensor Logits(const std::vector<std::vector<int64_t>>& new_tokens, KvCache& cache, bool every_token = false);

  // Sum of the cross-entropy of the targets [tokens] (negative: none) of one sequence; 0 on ranks without the loss
  // head. Data ranks may bring different sequences. Collective over the pipeline and whatever shares the weights.
  double SequenceLoss(const std::vector<int64_t>& tokens, const std::vector<int64_t>& targets);

  // For a non-finite loss or norm: which rank and unit have it. Collective; the same text on all ranks.
  std::string DescribeNonFinite(const StepResults& results);

  PipelineExecutor& executor() { return *executor_; }
  const std::vector<ParameterBuffer*>& buffers() { return buffers_; }
  const AttentionBackend& attention() const { return attention_; }

 private:
  Engine(EnginePlan plan, Mesh& mesh) : plan_(std::move(plan)), mesh_(mesh), decision_(plan_.z_loss, mesh) {}
  // The tensors hold what they should once `upload` was started.
  MicrobatchTensors ToDevice(Microbatch microbatch, UploadBlock& upload) const;
  // Which rows of the tables of rotation tokens read: those of the second where segments are longer than `beyond`.
  std::vector<int64_t> RotaryPositions(const std::vector<int64_t>& positions, const std::vector<int32_t>& cu_seqlens,
                                       int64_t beyond) const;
  // Tokens that must be added to `tokens` for the tensor ranks to share them evenly.
  int64_t Padding(int64_t tokens) const;
  // Ranks whose losses and gradients are parts of one sum: all but the tensor ranks, which hold the same losses.
  ProcessGroup& loss_group() const;
  void BuildStages(BufferOptions options, const BufferOptions& expert_options);

  EnginePlan plan_;
  Mesh& mesh_;
  at::Device device_ = at::kCPU;
  AttentionBackend attention_;
  std::unique_ptr<ExpertLoads> loads_;  // null: there are no experts
  std::shared_ptr<ProcessGroup> context_group_;
  std::unique_ptr<PipelineExecutor> executor_;
  std::vector<ParameterBuffer*> buffers_;
  std::vector<int> buffer_of_gradient_;  // of each gradient tensor that this rank counts
  StepDecision decision_;
  double targets_ = 0;  // of the step under way
};

// Adds up doubles over a group in rank order: the same bits on every rank.
double SumOverRanks(ProcessGroup& group, double value);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_ENGINE_H_
