// trainer/recipe/recipe.h
// A RunConfig proven consistent with a model, a corpus and a number of ranks. Immutable; lower layers see its sections
// only.
#ifndef TRIREME_TRAINER_RECIPE_RECIPE_H_
#define TRIREME_TRAINER_RECIPE_RECIPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "kernels/base/update_decision.h"
#include "launch/base/status.h"
#include "models/engine/engine_plan.h"
#include "models/engine/memory_estimate.h"
#include "models/spec/family.h"

namespace trireme {

// What the corpora say; zeros when there is none (bench).
struct CorpusFacts {
  int64_t vocab_size = 0;
  int64_t num_windows = 0;  // of data.sequence_length, over all sources
};

struct Recipe {
  RunConfig config;              // with everything that was left open filled in
  EnginePlan engine;             // what the config says of the model on its ranks
  int64_t num_microbatches = 0;  // per data-parallel rank and step
  int64_t tokens_per_step = 0;   // over all ranks
  int64_t total_steps = 0;

  // What the config says about a step's update (the bound of the norm goes with each step).
  DecisionRule decision_rule() const;
  OptimizerMemory optimizer_memory() const;  // what the optimizer holds

  double peak_learning_rate() const;
  // The learning rate of step `step`, counted from 1; without the factor of lr_schedule.plateau.
  double LearningRate(int64_t step) const;
};

// Checks everything at once; the error lists every problem, one a line. `attention_names`: implementations that exist.
absl::StatusOr<Recipe> MakeRecipe(const RunConfig& config, int world_size, const std::vector<ModelFamily>& families,
                                  const std::vector<std::string>& attention_names, const CorpusFacts& facts);

// kConfig where nobody could open what a run of `config` would train: an adapter, or what stands beside quantized
// weights, needs a model from somewhere. MakeRecipe() allows it, since speed is measured on random weights too.
absl::Status CheckOrigin(const RunConfig& config);

// Sentences about settings of `config`, which `recipe` was made of, that do nothing or less than they seem to beside
// the others: a warm-up that outlives the run, a step to trace that never comes.
std::vector<std::string> SettingsWithoutEffect(const RunConfig& config, const Recipe& recipe);

// Differences between the config of a checkpoint and this one that would change numbers; layout, logging, saving and
// the like do not.
std::vector<std::string> NumericChanges(const RunConfig& saved, const RunConfig& now);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_RECIPE_H_
