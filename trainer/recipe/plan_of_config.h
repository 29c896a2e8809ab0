// trainer/recipe/plan_of_config.h
// A config's words as the plain data that the engine knows; nothing is checked here.
#ifndef TRIREME_TRAINER_RECIPE_PLAN_OF_CONFIG_H_
#define TRIREME_TRAINER_RECIPE_PLAN_OF_CONFIG_H_

#include "configs/run_config.pb.h"
#include "models/engine/engine_plan.h"
#include "models/engine/layout.h"

namespace trireme {

BatchShape BatchOf(const RunConfig& config);
PipelineChoice PipelineOf(const ParallelConfig& config);

// Sets all of the plan that needs no check against the model and the ranks.
void PlanFrom(const RunConfig& config, EnginePlan* plan);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_PLAN_OF_CONFIG_H_
