// tests/parallel/tiny_run.h
// A tiny Llama trained as `trireme train` does it, without a command line: config, recipe, mesh, model, optimizer,
// checkpoints, on any mesh.
#ifndef TRIREME_TESTS_PARALLEL_TINY_RUN_H_
#define TRIREME_TESTS_PARALLEL_TINY_RUN_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/engine/engine.h"
#include "models/weights/sharded_tensors.h"
#include "trainer/loop/checkpointer.h"
#include "trainer/loop/optimizer.h"

namespace trireme {

using Tensors = std::map<std::string, at::Tensor>;  // by parameter, float32, whole

double TensorNorm(const at::Tensor& a);
double RelativeDistance(const at::Tensor& a, const at::Tensor& reference);  // of L2 norms

// Of TinyRun::Bytes().
void ExpectSameBytes(const std::map<std::string, std::string>& got, const std::map<std::string, std::string>& expected);

class TinyRun {
 public:
  // fragments: textprotos merged over a base of 2 layers, 64 wide, 8 heads (4 for keys and values), ffn 96, vocabulary
  // 211 and 16 sequences of 32 tokens a step, trained by SGD without clipping. alone: on one rank by itself, whatever
  // the job's size.
  explicit TinyRun(const std::vector<std::string>& fragments, bool alone = false);

  void Initialize() { model_->Initialize(); }
  double ForwardBackward(int64_t step);  // mean loss of the global batch `step`
  void Update();
  double Step();  // both, for the next step
  // Calls change(part) for what this rank holds of parameters whose names end so, values being its memory. Collective.
  void Change(const std::string& name_end, const std::function<void(const TensorPart& part)>& change);
  // From now on the last tokens of sequences only fill them, of each another number.
  void FillEnds() { fills_ = true; }
  // The next step as the training loop issues it, without a look at its results.
  PendingResults Issue();
  double Evaluate(int64_t step);

  absl::Status Save() { return checkpointer_->Save(progress_); }
  absl::StatusOr<bool> Resume() { return checkpointer_->Resume(/*allow_change=*/false, &progress_); }
  int64_t step() const { return progress_.step(); }

  // Whole tensors from the parts of all ranks, the same on each. Collective over the job (or nothing, when alone).
  Tensors Gradients();
  Tensors Weights();
  std::map<std::string, std::string> Bytes();  // of weights and optimizer state

  Engine& model() { return *model_; }
  Mesh& mesh() { return *mesh_; }
  const Recipe& recipe() const { return recipe_; }

 private:
  Tensors Whole(const std::vector<TensorPart>& parts, const std::string& suffix);
  StepBatch Batch(int64_t step) const;

  Extensions extensions_;
  Recipe recipe_;
  std::shared_ptr<Mesh> mesh_;
  std::unique_ptr<Engine> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Checkpointer> checkpointer_;
  TrainProgress progress_;
  bool fills_ = false;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_TINY_RUN_H_
