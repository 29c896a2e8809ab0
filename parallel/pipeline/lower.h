// parallel/pipeline/lower.h
// From compute order to what one rank executes: parameters, gradient reduction, and messages between ranks.
#ifndef TRIREME_PARALLEL_PIPELINE_LOWER_H_
#define TRIREME_PARALLEL_PIPELINE_LOWER_H_

#include <vector>

#include "parallel/pipeline/schedule.h"

namespace trireme {

struct LowerOptions {
  bool reshard = false;                 // Parameters are sharded (level PARAMETERS): drop them where not needed.
  bool reduce_every_microbatch = true;  // G after every B or W, not only after a stage's last.
};

// Inserts U, R and G (microbatch -1) into a compute-only schedule; the order of the compute actions stays. F, B and I
// need their stage's parameters, W does not.
//   U  one action before the first that needs the stage (before the first action, directly before it)
//   R  after an action, for a gathered stage that neither of the next two actions needs; none unless `reshard`
//   G  directly after a B or W
Schedule Lower(const Schedule& schedule, const LowerOptions& options);

// A tensor that goes from one rank to another.
struct Message {
  bool gradient = false;  // else an activation
  int stage = 0;          // that receives it: the next one for an activation, the one before for a gradient
  int microbatch = 0;
  friend bool operator==(const Message&, const Message&) = default;
};

// What `from_rank` sends `to_rank` in a step, in the order it is produced; who receives posts in this order.
std::vector<Message> LinkOrder(const Schedule& schedule, int from_rank, int to_rank);

// For each of these messages, how many compute actions of `to_rank`'s row must have run before it can be sent: what its
// sender needs, directly or through others, from the rank that waits for it.
std::vector<size_t> RunBeforeArrival(const Schedule& schedule, int from_rank, int to_rank);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_LOWER_H_
