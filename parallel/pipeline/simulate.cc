#include "parallel/pipeline/simulate.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "parallel/pipeline/walk.h"

namespace trireme {
namespace {

double Seconds(ActionKind kind, const StageCosts& costs) {
  switch (kind) {
    case ActionKind::kForward:
      return costs.forward_seconds;
    case ActionKind::kBackward:
      return costs.input_gradient_seconds + costs.weight_gradient_seconds;
    case ActionKind::kInputGradient:
      return costs.input_gradient_seconds;
    case ActionKind::kWeightGradient:
      return costs.weight_gradient_seconds;
    default:
      return 0;
  }
}

}  // namespace

Costs EqualCosts(const Schedule& schedule, const StageCosts& stage) {
  Costs costs;
  costs.stages.assign(schedule.num_stages(), stage);
  return costs;
}

double Timeline::bubble() const {
  if (total == 0) return 0;
  return 1 - std::accumulate(busy.begin(), busy.end(), 0.0) / (num_ranks * total);
}

Timeline Simulate(const Schedule& schedule, const Costs& costs) {
  TRIREME_CHECK(static_cast<int>(costs.stages.size()) == schedule.num_stages(), costs.stages.size(), " costs for ",
                schedule.num_stages(), " stages");
  const int num_ranks = schedule.num_ranks();
  std::vector<std::vector<TimedAction>> rows(num_ranks);
  Timeline timeline;
  timeline.num_ranks = num_ranks;
  timeline.num_stages = schedule.num_stages();
  timeline.busy.assign(num_ranks, 0);
  timeline.peak_activation_bytes.assign(num_ranks, 0);
  std::vector<double> held(num_ranks, 0);
  const auto run = [&](int rank, const Action& action, double ready) {
    const StageCosts& stage = costs.stages[action.stage];
    const double begin = std::max(ready, rows[rank].empty() ? 0.0 : rows[rank].back().end);
    const double seconds = Seconds(action.kind, stage);
    rows[rank].push_back({rank, action, begin, begin + seconds});
    timeline.busy[rank] += seconds;
    timeline.total = std::max(timeline.total, begin + seconds);
    if (action.kind == ActionKind::kForward) {
      held[rank] += stage.activation_bytes;
      timeline.peak_activation_bytes[rank] = std::max(timeline.peak_activation_bytes[rank], held[rank]);
    } else if (action.kind != ActionKind::kInputGradient) {
      held[rank] -= stage.activation_bytes;
    }
    return begin + seconds;
  };
  const std::vector<size_t> passed = WalkRows(schedule, costs.transfer_seconds, run);
  for (int rank = 0; rank < num_ranks; ++rank) {
    TRIREME_CHECK(passed[rank] == schedule.ranks[rank].size(), "rank ", rank, " of schedule ", schedule.name,
                  " is stuck at action ", passed[rank]);
    timeline.actions.insert(timeline.actions.end(), rows[rank].begin(), rows[rank].end());
  }
  return timeline;
}

}  // namespace trireme
