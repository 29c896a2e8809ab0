// trainer/loop/checkpointer.h
// Saves and restores a run, whole or not at all.
#ifndef TRIREME_TRAINER_LOOP_CHECKPOINTER_H_
#define TRIREME_TRAINER_LOOP_CHECKPOINTER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/engine/engine.h"
#include "models/weights/checkpoint.pb.h"
#include "models/weights/run_text.h"
#include "models/weights/sharded_tensors.h"
#include "parallel/comm/mesh.h"
#include "trainer/loop/optimizer.h"
#include "trainer/loop/weight_average.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

// Whether checkpoints hold the buffer's weights. Under an adapter what is frozen stands in the base model's files; what
// groups of the optimizer froze stands nowhere else.
bool IsSaved(const ParameterBuffer& buffer, const DecoderSpec& model);

// run_dir/checkpoints/step-00000100/{weights,optimizer}/*.safetensors and manifest.pb. Written under
// step-00000100.tmp-ID, every file fsynced, the manifest last; then renamed, the parent fsynced, and LATEST moved once
// all ranks acknowledged. A crash at any point leaves the older ones. Of a model with an adapter only what is trained
// is saved.
class Checkpointer {
 public:
  // All must outlive it. corpus_digests identify the data, base_digest (IdentifyModel) the model that an adapter is
  // trained on; "": there is none. text: what the data say about the finished model. average: of the weights, saved
  // likewise in averages/; null: none. Not collective.
  Checkpointer(const Recipe& recipe, Mesh& mesh, Engine& model, Optimizer& optimizer,
               std::vector<std::string> corpus_digests, std::string base_digest = "",
               std::optional<RunText> text = std::nullopt, WeightAverage* average = nullptr);

  // Collective. Afterwards removes checkpoints beyond keep_last (never the best one when keep_best is set, never the
  // one just saved) and temporaries of dead runs. Errors are agreed: the same on all ranks; nothing half-written is
  // left behind.
  absl::Status Save(const TrainProgress& progress);

  // Collective. The newest checkpoint that is whole; older ones are fallen back to with a warning saying why. False
  // when there is none. allow_change: go on although the config differs in fields that alter numbers.
  absl::StatusOr<bool> Resume(bool allow_change, TrainProgress* progress);

 private:
  // What stands in weights/ or, of the average, in averages/: both are complete.
  std::vector<TensorPart> WeightParts(bool averaged, bool unique) const;
  absl::Status Write(const std::string& folder, const TrainProgress& progress);
  absl::StatusOr<CheckpointManifest> Inspect(const std::string& folder, bool verify);
  absl::Status LoadAverage(const std::string& folder, const CheckpointManifest& manifest);
  absl::Status Load(const std::string& folder, const CheckpointManifest& manifest);
  void Sweep(const TrainProgress& progress, const std::string& saved) const;

  const Recipe& recipe_;
  Mesh& mesh_;
  Engine& model_;
  Optimizer& optimizer_;
  std::vector<std::string> corpus_digests_;
  std::string base_digest_;
  std::optional<RunText> text_;
  WeightAverage* average_;
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_CHECKPOINTER_H_
