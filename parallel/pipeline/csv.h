// parallel/pipeline/csv.h
// Schedules in the CSV dialect of torch.distributed.pipelining: a line per rank, cells such as 0F1, 2I0, 3W0, 0B2.
#ifndef TRIREME_PARALLEL_PIPELINE_CSV_H_
#define TRIREME_PARALLEL_PIPELINE_CSV_H_

#include <string>

#include "parallel/pipeline/schedule.h"

namespace trireme {

// Reads both of PyTorch's forms: compute only, and with communication. Empty cells and what Lower() and the executor
// derive anew (UNSHARD, RESHARD, REDUCE_GRAD, SEND_F, RECV_F, SEND_B, RECV_B) are left out; (1F2;0B1)OVERLAP_F_B runs
// as 1F2 and then 0B1. Who runs a stage owns it. Errors name line and cell, counted from 1. Checks the form only: text
// from outside also needs Validate().
absl::StatusOr<Schedule> ParseCsv(const std::string& text);

// PyTorch's _load_csv reads it: "compute_only" if the schedule is.
std::string PrintCsv(const Schedule& schedule);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_CSV_H_
