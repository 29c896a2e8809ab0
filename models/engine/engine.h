// models/engine/engine.h
// A recipe's model on this rank: its stages, and what the loop asks of it.
#ifndef TRIREME_MODELS_ENGINE_ENGINE_H_
#define TRIREME_MODELS_ENGINE_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sampling/loader.h"
#include "models/engine/extensions.h"
#include "parallel/comm/mesh.h"
#include "parallel/pipeline/executor.h"
#include "trainer/loop/check_against.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

struct Loss {
  double mean = 0;      // cross-entropy per target, over the global batch. Unit: nat
  double z_loss = 0;    // coefficient x mean of lse^2
  int64_t targets = 0;  // in the global batch
};

struct GradNorm {
  double total = 0;        // L2 norm over every element once; all ranks hold the same bits
  double clip_factor = 1;  // min(1, max_norm / (total + 1e-6))
};

class Model {
 public:
  // Collective over the job. Weights are zero until Initialize() or a load.
  static absl::StatusOr<std::unique_ptr<Model>> Create(const Recipe& recipe, Mesh& mesh, const Extensions& extensions);

  // Fills weights from the seed, the same for every layout. Collective.
  void Initialize();
  // Then, or once weights were loaded: fills those that follow from others (DoRA's magnitudes). Collective.
  void InitializeDerived();

  // Gradients of the mean loss over the global batch, accumulated over all microbatches and summed over data ranks.
  // Collective. Fails when no target in the global batch carries loss.
  absl::StatusOr<Loss> ForwardBackward(const StepBatch& batch);

  // Collective. max_norm 0: no clipping.
  GradNorm ClipGradNorm(double max_norm);

  // Of every parameter in the model's order, before clipping; the same on all ranks. Collective.
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
  std::string DescribeNonFinite(double local_loss_sum);

  PipelineExecutor& executor() { return *executor_; }
  const std::vector<ParameterBuffer*>& buffers() { return buffers_; }
  const AttentionBackend& attention() const { return attention_; }
  double last_local_loss_sum() const { return last_local_loss_sum_; }

 private:
  Model(const Recipe& recipe, Mesh& mesh) : recipe_(recipe), mesh_(mesh) {}
  MicrobatchTensors ToDevice(const Microbatch& microbatch) const;
  // Tokens that must be added to `tokens` for the tensor ranks to share them evenly.
  int64_t Padding(int64_t tokens) const;
  // Ranks whose losses and gradients are parts of one sum: all but the tensor ranks, which hold the same losses.
  ProcessGroup& loss_group() const;
  void BuildStages(BufferOptions options);

  Recipe recipe_;
  Mesh& mesh_;
  at::Device device_ = at::kCPU;
  AttentionBackend attention_;
  std::shared_ptr<ProcessGroup> context_group_;
  std::unique_ptr<PipelineExecutor> executor_;
  std::vector<ParameterBuffer*> buffers_;
  double last_local_loss_sum_ = 0;
};

// Adds up doubles over a group in rank order: the same bits on every rank.
double SumOverRanks(ProcessGroup& group, double value);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_ENGINE_H_
