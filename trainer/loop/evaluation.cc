#include "trainer/loop/evaluation.h"

#include <algorithm>

namespace trireme {

absl::StatusOr<double> EvaluateSplit(Engine& model, Mesh& mesh, const Sampler& sampler, const Recipe& recipe,
                                     int64_t max_sequences, const std::function<void(const Microbatch&)>& seen) {
  const int64_t windows =
      max_sequences > 0 ? std::min<int64_t>(max_sequences, sampler.num_windows()) : sampler.num_windows();
  const int64_t micro = recipe.config.micro_batch_size(), ranks = mesh.num_data_ranks();
  double loss_sum = 0, targets = 0;
  for (int64_t first = 0; first < windows; first += micro * ranks) {
    Microbatch microbatch;
    for (int64_t i = 0; i < micro; ++i) {
      const int64_t index = first + mesh.data_rank() * micro + i;
      // Every rank takes part in every microbatch; what lies beyond the split counts for nothing.
      ASSIGN_OR_RETURN(const Sample sample, sampler.Get(std::min(index, windows - 1)));
      const size_t begin = microbatch.targets.size();
      const int64_t targets_before = microbatch.num_targets;
      AppendSequence(sample, recipe.config.data().document_mask(), &microbatch);
      if (index >= windows) {
        std::fill(microbatch.targets.begin() + static_cast<int64_t>(begin), microbatch.targets.end(), kIgnoredTarget);
        microbatch.num_targets = targets_before;
      }
    }
    if (seen) seen(microbatch);
    mesh.log().Beat("evaluating");
    const Engine::EvaluationSums sums = model.Evaluate({microbatch});
    loss_sum += sums.loss_sum;
    targets += static_cast<double>(sums.targets);
  }
  if (targets == 0) return Error(ExitCode::kData, "evaluation: the validation split has no target that carries loss");
  return loss_sum / targets;
}

}  // namespace trireme
