#ifndef TRIREME_PARALLEL_PIPELINE_LOWER_H_
#define TRIREME_PARALLEL_PIPELINE_LOWER_H_
// PLACEHOLDER by the lead; the pipeline engineer replaces this file.
#include "parallel/pipeline/schedule.h"
namespace trireme {
struct LowerOptions { bool reshard = false; bool reduce_every_microbatch = true; };
Schedule Lower(const Schedule& schedule, const LowerOptions& options);
struct Message { bool gradient = false; int stage = 0; int microbatch = 0; };
std::vector<Message> LinkOrder(const Schedule& schedule, int from_rank, int to_rank);
}  // namespace trireme
#endif
