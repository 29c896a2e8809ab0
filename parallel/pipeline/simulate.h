// parallel/pipeline/simulate.h
// What a schedule would take: times, bubble and memory from the costs of its stages.
#ifndef TRIREME_PARALLEL_PIPELINE_SIMULATE_H_
#define TRIREME_PARALLEL_PIPELINE_SIMULATE_H_

#include <vector>

#include "parallel/pipeline/schedule.h"

namespace trireme {

struct StageCosts {
  double forward_seconds = 1;
  double input_gradient_seconds = 1;
  double weight_gradient_seconds = 1;  // A B takes input and weight gradient together.
  double activation_bytes = 1;         // of one microbatch, held from the begin of F to the end of B or W
};

struct Costs {
  std::vector<StageCosts> stages;  // one per stage
  double transfer_seconds = 0;     // from the end of an action to its tensor's arrival on another rank; blocks nobody
};

// All stages alike.
Costs EqualCosts(const Schedule& schedule, const StageCosts& stage);

struct TimedAction {
  int rank = 0;
  Action action;
  double begin = 0;  // seconds
  double end = 0;
};

struct Timeline {
  int num_ranks = 0;
  int num_stages = 0;
  std::vector<TimedAction> actions;           // by rank, then by time
  double total = 0;                           // seconds from the first begin to the last end
  std::vector<double> busy;                   // [num_ranks], seconds
  std::vector<double> peak_activation_bytes;  // [num_ranks]

  // The share of all ranks' time in which they wait: 1 - sum(busy) / (num_ranks * total).
  double bubble() const;
};

// Each rank runs its row in order, each action as early as it can. U, R and G take no time and are left out. The
// schedule is valid.
Timeline Simulate(const Schedule& schedule, const Costs& costs);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_SIMULATE_H_
