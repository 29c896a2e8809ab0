// trainer/recipe/optimization.h
// What a config says about updates: which rule, at what learning rate, and what that takes.
#ifndef TRIREME_TRAINER_RECIPE_OPTIMIZATION_H_
#define TRIREME_TRAINER_RECIPE_OPTIMIZATION_H_

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/engine/memory_estimate.h"
#include "models/weights/checkpoint.pb.h"

namespace trireme {

// Add what cannot work to `problems`, as field, value, remedy.
void CheckOptimizer(const OptimizerConfig& optimizer, const PrecisionConfig& precision,
                    std::vector<std::string>* problems);
void CheckSchedule(const LrScheduleConfig& schedule, const EvaluationConfig& evaluation,
                   std::vector<std::string>* problems);

// Whether each scale of AdamW's state in 8 bits is one rank's; the mesh and the model of the plan are known.
void CheckMomentBlocks(const OptimizerConfig& optimizer, const EnginePlan& plan, std::vector<std::string>* problems);

// The AdamW of a config: the rule, or what updates the rest beside Muon; defaults where there is none.
const AdamW& AdamWOf(const OptimizerConfig& optimizer);
double PeakLearningRate(const OptimizerConfig& optimizer);

// The learning rate of step `step`, counted from 1, of `total_steps`; PlateauShape's factor is not in it.
double LearningRateAt(const LrScheduleConfig& schedule, double peak, int64_t step, int64_t total_steps);
// Whether the length of the run is in the learning rates.
bool DependsOnLength(const LrScheduleConfig& schedule);

// What an evaluation's loss changes about the steps that follow: PlateauProgress::factor multiplies their rates.
void ObserveEvaluation(const PlateauShape& shape, double peak, double loss, PlateauProgress* progress);

// Whether Muon updates the parameter, and whether an AdamW that does keeps its moments in 8 bits; bitsandbytes leaves
// small parameters as they are, too (min_8bit_size).
bool ByMuon(const OptimizerConfig& optimizer, const ParameterSpec& spec);
bool InEightBits(const AdamW& adamw, const ParameterSpec& spec);

// What the rule keeps of a parameter: a number of `type` for every `block` elements.
struct StateKind {
  const char* name;
  at::ScalarType type = at::kFloat;
  int64_t block = 1;
};
std::vector<StateKind> StatesOf(const OptimizerConfig& optimizer, const ParameterSpec& spec);

// What the optimizer holds, for EstimateMemory().
OptimizerMemory MemoryOf(const OptimizerConfig& optimizer);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_OPTIMIZATION_H_
