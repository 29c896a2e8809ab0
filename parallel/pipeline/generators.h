// parallel/pipeline/generators.h
// One function per schedule. Arguments are positive; MakeSchedule() has checked stages_per_rank.
#ifndef TRIREME_PARALLEL_PIPELINE_GENERATORS_H_
#define TRIREME_PARALLEL_PIPELINE_GENERATORS_H_

#include "parallel/pipeline/schedule.h"

namespace trireme {

struct ScheduleShape {
  int num_ranks = 1;
  int stages_per_rank = 1;
  int num_microbatches = 1;
};

// All forwards, then all backwards.
Schedule GPipe(const ScheduleShape& shape);

// One forward, one backward, after num_ranks - 1 - rank forwards.
Schedule OneForwardOneBackward(const ScheduleShape& shape);

// 1F1B over stages dealt round (rank r has stages r, r + num_ranks, ...), in groups of at least num_ranks microbatches.
Schedule Interleaved(const ScheduleShape& shape);

// 1F1B whose W runs `rank` microbatches behind its I, where 1F1B waits.
Schedule ZeroBubbleH1(const ScheduleShape& shape);

// Stages go down the ranks and up again; who is free picks by rules under a memory bound, one time unit after another.
Schedule ZeroBubbleV(const ScheduleShape& shape);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_GENERATORS_H_
