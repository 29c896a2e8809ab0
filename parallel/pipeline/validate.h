// parallel/pipeline/validate.h
// Refuses a table that would hang, compute something twice or not at all, or hold too much.
#ifndef TRIREME_PARALLEL_PIPELINE_VALIDATE_H_
#define TRIREME_PARALLEL_PIPELINE_VALIDATE_H_

#include <optional>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace trireme {

// OK if every stage runs, on its rank, every microbatch's F once and either its B once or its I and W once, in an order
// in which no rank waits for ever, and no rank holds more than `max_in_flight` microbatch-stages (see MaxInFlight). An
// error names rank, index in its row and action. U, R and G are passed over.
absl::Status Validate(const Schedule& schedule, std::optional<int> max_in_flight = std::nullopt);

// Per rank, the most microbatch-stages whose F has run while their B or W has not. The schedule is valid.
std::vector<int> MaxInFlight(const Schedule& schedule);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_VALIDATE_H_
