// parallel/pipeline/balance.h
// Cuts a model's units into pipeline stages of about equal cost.
#ifndef TRIREME_PARALLEL_PIPELINE_BALANCE_H_
#define TRIREME_PARALLEL_PIPELINE_BALANCE_H_

#include <vector>

#include "launch/base/status.h"

namespace trireme {

// How many consecutive units each stage gets, at least one each: the largest sum of costs in a stage is as small as
// can be, and of such cuts the sum of squares is. Costs are finite and not negative, in any unit. An error if there are
// fewer units than stages.
absl::StatusOr<std::vector<int>> BalanceStages(const std::vector<double>& unit_costs, int num_stages);

// The sum of the costs in each stage of a cut.
std::vector<double> CostPerStage(const std::vector<double>& unit_costs, const std::vector<int>& units_per_stage);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_BALANCE_H_
