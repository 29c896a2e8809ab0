// parallel/pipeline/walk.h
// Runs a table's rows against each other in some unit of time; Validate() and Simulate() are made of it.
#ifndef TRIREME_PARALLEL_PIPELINE_WALK_H_
#define TRIREME_PARALLEL_PIPELINE_WALK_H_

#include <cstddef>
#include <functional>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace trireme {

// What must have run before a compute action may. I stands for the I or B of its stage.
std::vector<Action> Needs(const Schedule& schedule, const Action& action);

// Calls `run` once for every compute action that can run: in the row's order per rank, and after all that it needs.
// `ready` is when that has arrived, `transfer` after its end if it came from another rank; `run` returns the action's
// own end. Returns per rank how many actions of its row were passed: less than the row's length where it is stuck.
// Stages and microbatches must be in range.
std::vector<size_t> WalkRows(const Schedule& schedule, double transfer,
                             const std::function<double(int rank, const Action& action, double ready)>& run);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_WALK_H_
