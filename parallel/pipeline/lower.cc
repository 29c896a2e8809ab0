#include "parallel/pipeline/lower.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <utility>

#include "parallel/pipeline/walk.h"

namespace trireme {
namespace {

// How many actions, the current one included, have their parameters gathered.
constexpr size_t kWindow = 2;

bool NeedsParameters(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kInputGradient;
}

bool MakesWeightGradient(ActionKind kind) {
  return kind == ActionKind::kBackward || kind == ActionKind::kWeightGradient;
}

std::vector<Action> LowerRow(const std::vector<Action>& row, const Schedule& schedule, const LowerOptions& options) {
  std::vector<Action> lowered;
  std::set<int> gathered;  // stages
  std::vector<int> weight_gradients_left(schedule.num_stages(), schedule.num_microbatches);
  // The stages that row[begin, begin + kWindow) needs.
  const auto needed = [&](size_t begin) {
    std::vector<int> stages;
    for (size_t i = begin; i < std::min(begin + kWindow, row.size()); ++i) {
      if (NeedsParameters(row[i].kind)) stages.push_back(row[i].stage);
    }
    return stages;
  };
  for (size_t i = 0; i < row.size(); ++i) {
    const Action& action = row[i];
    TRIREME_CHECK(IsCompute(action.kind), ToString(action), " in a schedule that is to be lowered");
    for (int stage : needed(i)) {
      if (gathered.insert(stage).second) lowered.push_back({ActionKind::kUnshard, stage, -1});
    }
    lowered.push_back(action);
    if (MakesWeightGradient(action.kind)) {
      const bool last = --weight_gradients_left[action.stage] == 0;
      if (last || options.reduce_every_microbatch) {
        lowered.push_back({ActionKind::kReduceGradients, action.stage, -1});
      }
    }
    if (!options.reshard) continue;
    const std::vector<int> soon = needed(i + 1);
    const std::set<int> keep(soon.begin(), soon.end());
    for (auto stage = gathered.begin(); stage != gathered.end();) {
      if (keep.count(*stage) > 0) {
        ++stage;
        continue;
      }
      lowered.push_back({ActionKind::kReshard, *stage, -1});
      stage = gathered.erase(stage);
    }
  }
  return lowered;
}

}  // namespace

Schedule Lower(const Schedule& schedule, const LowerOptions& options) {
  Schedule lowered = schedule;
  for (std::vector<Action>& row : lowered.ranks) row = LowerRow(row, schedule, options);
  return lowered;
}

std::vector<Message> LinkOrder(const Schedule& schedule, int from_rank, int to_rank) {
  std::vector<Message> messages;
  if (from_rank == to_rank) return messages;
  const auto on_receiver = [&](int stage) {
    return stage >= 0 && stage < schedule.num_stages() && schedule.rank_of_stage[stage] == to_rank;
  };
  for (const Action& action : schedule.ranks[from_rank]) {
    const bool forward = action.kind == ActionKind::kForward;
    const bool backward = action.kind == ActionKind::kBackward || action.kind == ActionKind::kInputGradient;
    const int receiver = forward ? action.stage + 1 : action.stage - 1;
    if ((forward || backward) && on_receiver(receiver)) messages.push_back({backward, receiver, action.microbatch});
  }
  return messages;
}

std::vector<size_t> RunBeforeArrival(const Schedule& schedule, int from_rank, int to_rank) {
  // Per rank, how many of to_rank's actions what it did so far builds on; and the same of every F, and of every B or I.
  std::vector<size_t> built_on(schedule.num_ranks(), 0);
  std::map<std::pair<bool, std::pair<int, int>>, size_t> of_action;
  const auto key = [](const Action& action) {
    return std::pair(action.kind == ActionKind::kForward, std::pair(action.stage, action.microbatch));
  };
  WalkRows(schedule, /*transfer=*/0, [&](int rank, const Action& action, double ready) {
    size_t& own = built_on[rank];
    for (const Action& need : Needs(schedule, action)) own = std::max(own, of_action.at(key(need)));
    if (rank == to_rank) own = built_on[rank] + 1;
    if (action.kind != ActionKind::kWeightGradient) of_action[key(action)] = own;
    return ready;
  });
  std::vector<size_t> run_before;
  for (const Message& message : LinkOrder(schedule, from_rank, to_rank)) {
    const int sender = message.gradient ? message.stage + 1 : message.stage - 1;
    run_before.push_back(of_action.at({!message.gradient, {sender, message.microbatch}}));
  }
  return run_before;
}

}  // namespace trireme
