// parallel/pipeline/schedule.h
// A pipeline schedule is a table: per rank, the actions it runs in order.
#ifndef TRIREME_PARALLEL_PIPELINE_SCHEDULE_H_
#define TRIREME_PARALLEL_PIPELINE_SCHEDULE_H_

#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

enum class ActionKind {
  kForward,          // F
  kBackward,         // B: both gradients
  kInputGradient,    // I
  kWeightGradient,   // W: needs the I of its microbatch
  kUnshard,          // U: start gathering the stage's parameters
  kReshard,          // R: drop the gathered parameters
  kReduceGradients,  // G: the stage's gradients are complete (or this microbatch's, see LowerOptions); reduce them
};

struct Action {
  ActionKind kind = ActionKind::kForward;
  int stage = 0;       // of the whole pipeline, 0 reads the input
  int microbatch = 0;  // -1 for U, R and G
  friend bool operator==(const Action&, const Action&) = default;
};

// In PyTorch's spelling: "2F0", "1I3", "0UNSHARD".
std::string ToString(const Action& action);

inline bool IsCompute(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kInputGradient ||
         kind == ActionKind::kWeightGradient;
}

struct Schedule {
  std::string name;
  int num_microbatches = 0;
  std::vector<int> rank_of_stage;
  std::vector<std::vector<Action>> ranks;  // compute only (F, B, I, W) until Lower() adds U, R and G
  int num_ranks() const { return static_cast<int>(ranks.size()); }
  int num_stages() const { return static_cast<int>(rank_of_stage.size()); }
};

// The names MakeSchedule() generates.
std::vector<std::string> ScheduleNames();

// A valid schedule (Validate() accepts it) for any num_microbatches >= 1, also fewer than ranks. `name` is one of
// ScheduleNames(), or a file in PyTorch's CSV dialect if it ends in ".csv"; the file must then be for exactly
// these ranks, stages and microbatches.
//                 stages per rank  activations held, in microbatch-stages      between F and B or W
//   GPipe         1                num_microbatches
//   1F1B          1                num_ranks - rank                            arXiv 2104.04473
//   Interleaved1F1B  2 or more     (stages_per_rank - 1) * group + 2 * (num_ranks - rank) - 1, where microbatches
//                                  go in even groups of num_ranks or a little more
//   ZB-H1         1                num_ranks; num_ranks - rank between F and I arXiv 2401.10241
//   ZB-V          2                2 * num_ranks; rank r has stages r and 2 * num_ranks - 1 - r
// Each is also bounded by num_microbatches * stages_per_rank.
absl::StatusOr<Schedule> MakeSchedule(const std::string& name, int num_ranks, int stages_per_rank,
                                      int num_microbatches);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_SCHEDULE_H_
