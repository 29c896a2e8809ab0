#include "parallel/pipeline/walk.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>

namespace trireme {
namespace {

constexpr double kNotYet = std::numeric_limits<double>::infinity();

// When every forward and every backward (B or I) ended; nothing of another stage needs a W.
class Ends {
 public:
  explicit Ends(const Schedule& schedule)
      : num_microbatches_(schedule.num_microbatches),
        forward_(static_cast<size_t>(schedule.num_stages()) * schedule.num_microbatches, kNotYet),
        backward_(forward_) {}

  double& of(const Action& action) {
    const size_t index = static_cast<size_t>(action.stage) * num_microbatches_ + action.microbatch;
    return action.kind == ActionKind::kForward ? forward_[index] : backward_[index];
  }

 private:
  int num_microbatches_;
  std::vector<double> forward_;   // [stages * microbatches]
  std::vector<double> backward_;  // [stages * microbatches]
};

}  // namespace

std::vector<Action> Needs(const Schedule& schedule, const Action& action) {
  const auto [kind, stage, microbatch] = action;
  std::vector<Action> needs;
  switch (kind) {
    case ActionKind::kForward:
      if (stage > 0) needs.push_back({ActionKind::kForward, stage - 1, microbatch});
      break;
    case ActionKind::kBackward:
    case ActionKind::kInputGradient:
      needs.push_back({ActionKind::kForward, stage, microbatch});
      if (stage + 1 < schedule.num_stages()) needs.push_back({ActionKind::kInputGradient, stage + 1, microbatch});
      break;
    case ActionKind::kWeightGradient:
      needs.push_back({ActionKind::kInputGradient, stage, microbatch});
      break;
    default:
      TRIREME_CHECK(false, ToString(action), " computes nothing");
  }
  return needs;
}

std::vector<size_t> WalkRows(const Schedule& schedule, double transfer,
                             const std::function<double(int rank, const Action& action, double ready)>& run) {
  Ends ends(schedule);
  const auto ready_at = [&](const Action& action) {
    double ready = 0;
    for (const Action& need : Needs(schedule, action)) {
      const bool elsewhere = schedule.rank_of_stage[need.stage] != schedule.rank_of_stage[action.stage];
      ready = std::max(ready, ends.of(need) + (elsewhere ? transfer : 0));
    }
    return ready;
  };
  std::vector<size_t> passed(schedule.num_ranks(), 0);
  std::deque<int> awake;
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) awake.push_back(rank);
  while (!awake.empty()) {
    const int rank = awake.front();
    awake.pop_front();
    const std::vector<Action>& row = schedule.ranks[rank];
    for (size_t& next = passed[rank]; next < row.size(); ++next) {
      const Action& action = row[next];
      if (!IsCompute(action.kind)) continue;
      const double ready = ready_at(action);
      if (ready == kNotYet) break;
      const double end = run(rank, action, ready);
      if (action.kind == ActionKind::kWeightGradient) continue;
      ends.of(action) = end;
      const int neighbour = action.stage + (action.kind == ActionKind::kForward ? 1 : -1);
      if (neighbour < 0 || neighbour >= schedule.num_stages()) continue;
      if (schedule.rank_of_stage[neighbour] != rank) awake.push_back(schedule.rank_of_stage[neighbour]);
    }
  }
  return passed;
}

}  // namespace trireme
