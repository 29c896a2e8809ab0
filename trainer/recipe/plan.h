// trainer/recipe/plan.h
// What a recipe would cost, before any rank starts: the simulated schedule and each rank's memory.
#ifndef TRIREME_TRAINER_RECIPE_PLAN_H_
#define TRIREME_TRAINER_RECIPE_PLAN_H_

#include <string>
#include <vector>

#include "models/engine/memory_estimate.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

struct PlanOptions {
  double flops = 0;        // operations per second of one rank; 0: unknown, times are in units of a block's forward
  double bandwidth = 0;    // bytes per second between pipeline ranks; 0: transfers are free
  std::string costs_file;  // a trace of this layout (run_dir/trace/step-N.json) with measured costs; "": from sizes
};

struct RunPlan {
  Costs costs;
  Timeline timeline;
  std::vector<RankMemory> memory;  // by pipeline rank
  std::vector<int> in_flight;      // by pipeline rank, microbatch-stages at most
  std::string time_unit;           // "s" or "block forwards"
};

absl::StatusOr<RunPlan> MakePlan(const Recipe& recipe, const PlanOptions& options);

// A page for people.
std::string PlanText(const Recipe& recipe, const RunPlan& plan);

// Seconds of each kind of action of each stage, from a trace; an error names what is wrong with the file.
absl::StatusOr<Costs> ReadCosts(const std::string& path, int num_stages);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_PLAN_H_
