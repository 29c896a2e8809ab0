#include "parallel/pipeline/validate.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "parallel/pipeline/walk.h"

namespace trireme {
namespace {

constexpr size_t kMaxRanksNamed = 16;

// How much the microbatch-stages in flight grow by.
int Growth(ActionKind kind) {
  if (kind == ActionKind::kForward) return 1;
  return kind == ActionKind::kBackward || kind == ActionKind::kWeightGradient ? -1 : 0;
}

template <typename... Args>
absl::Status Refuse(int rank, size_t index, const Action& action, const Args&... reason) {
  return Error(ExitCode::kData, "rank ", rank, ", action ", index, " (", ToString(action), "): ", reason...);
}

absl::Status CheckShape(const Schedule& schedule) {
  int64_t num_actions = 0;
  for (const std::vector<Action>& row : schedule.ranks) num_actions += static_cast<int64_t>(row.size());
  if (schedule.ranks.empty() || schedule.rank_of_stage.empty() || schedule.num_microbatches < 1) {
    return Error(ExitCode::kData, "a table of ", schedule.num_ranks(), " ranks, ", schedule.num_stages(),
                 " stages and ", schedule.num_microbatches, " microbatches; all must be at least 1");
  }
  for (int stage = 0; stage < schedule.num_stages(); ++stage) {
    const int rank = schedule.rank_of_stage[stage];
    if (rank >= 0 && rank < schedule.num_ranks()) continue;
    return Error(ExitCode::kData, "stage ", stage, " is on rank ", rank, " of ", schedule.num_ranks());
  }
  // Before anything is allocated for what the numbers claim.
  if (int64_t{schedule.num_stages()} * schedule.num_microbatches > num_actions) {
    return Error(ExitCode::kData, num_actions, " actions cannot run ", schedule.num_microbatches, " microbatches on ",
                 schedule.num_stages(), " stages forward and backward");
  }
  return absl::OkStatus();
}

// Each action on its rank, once, after what it needs on the same stage; none missing.
absl::Status CheckStages(const Schedule& schedule) {
  struct Ran {
    bool forward = false, backward = false, weight = false;
  };
  std::vector<Ran> table(static_cast<size_t>(schedule.num_stages()) * schedule.num_microbatches);
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    for (size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
      const Action& action = schedule.ranks[rank][i];
      if (!IsCompute(action.kind)) continue;
      if (action.stage < 0 || action.stage >= schedule.num_stages()) {
        return Refuse(rank, i, action, "there are ", schedule.num_stages(), " stages");
      }
      if (action.microbatch < 0 || action.microbatch >= schedule.num_microbatches) {
        return Refuse(rank, i, action, "there are ", schedule.num_microbatches, " microbatches");
      }
      if (schedule.rank_of_stage[action.stage] != rank) {
        return Refuse(rank, i, action, "stage ", action.stage, " is on rank ", schedule.rank_of_stage[action.stage]);
      }
      Ran& ran = table[static_cast<size_t>(action.stage) * schedule.num_microbatches + action.microbatch];
      const bool forward = action.kind == ActionKind::kForward, weight = action.kind == ActionKind::kWeightGradient;
      bool& again = forward ? ran.forward : weight ? ran.weight : ran.backward;
      if (again) {
        return Refuse(rank, i, action, weight ? "the weight gradient has run before (a B has both)" : "it runs twice");
      }
      if (!forward && !ran.forward) return Refuse(rank, i, action, "its forward has not run before it");
      if (weight && !ran.backward) return Refuse(rank, i, action, "its input gradient has not run before it");
      again = true;
      if (action.kind == ActionKind::kBackward) ran.weight = true;
    }
  }
  for (int stage = 0; stage < schedule.num_stages(); ++stage) {
    for (int m = 0; m < schedule.num_microbatches; ++m) {
      const Ran& ran = table[static_cast<size_t>(stage) * schedule.num_microbatches + m];
      if (ran.forward && ran.backward && ran.weight) continue;
      const char* missing = !ran.forward    ? "forward (F)"
                            : !ran.backward ? "backward (B, or I and W)"
                                            : "weight gradient (W)";
      return Error(ExitCode::kData, "rank ", schedule.rank_of_stage[stage], " never runs stage ", stage, "'s ", missing,
                   " of microbatch ", m);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckProgress(const Schedule& schedule) {
  std::vector<std::vector<bool>> done[2];  // forward, backward; [stage][microbatch]
  for (auto& phase : done) {
    phase.assign(schedule.num_stages(), std::vector<bool>(schedule.num_microbatches, false));
  }
  const auto phase_of = [](const Action& action) { return action.kind == ActionKind::kForward ? 0 : 1; };
  const std::vector<size_t> passed = WalkRows(schedule, 0, [&](int, const Action& action, double) {
    done[phase_of(action)][action.stage][action.microbatch] = true;
    return 0.0;
  });
  std::vector<std::string> stuck;
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    if (passed[rank] == schedule.ranks[rank].size()) continue;
    const Action& action = schedule.ranks[rank][passed[rank]];
    for (const Action& need : Needs(schedule, action)) {
      if (done[phase_of(need)][need.stage][need.microbatch]) continue;
      const bool forward = need.kind == ActionKind::kForward;
      stuck.push_back(absl::StrCat("rank ", rank, ", action ", passed[rank], " (", ToString(action), ") waits for the ",
                                   forward ? "forward" : "backward", " of microbatch ", need.microbatch, " on stage ",
                                   need.stage, " (rank ", schedule.rank_of_stage[need.stage], ")"));
    }
  }
  if (stuck.empty()) return absl::OkStatus();
  const size_t shown = std::min(stuck.size(), kMaxRanksNamed);
  return Error(ExitCode::kData, "the ranks wait for each other for ever: ",
               absl::StrJoin(stuck.begin(), stuck.begin() + static_cast<ptrdiff_t>(shown), "; "),
               shown < stuck.size() ? "; ..." : "");
}

absl::Status CheckMemory(const Schedule& schedule, int max_in_flight) {
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    int in_flight = 0;
    for (size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
      const Action& action = schedule.ranks[rank][i];
      in_flight += Growth(action.kind);
      if (in_flight > max_in_flight) {
        return Refuse(rank, i, action, "the activations of ", in_flight, " microbatches are held, at most ",
                      max_in_flight, " may be; take a schedule that holds fewer or more ranks");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Schedule& schedule, std::optional<int> max_in_flight) {
  RETURN_IF_ERROR(CheckShape(schedule));
  RETURN_IF_ERROR(CheckStages(schedule));
  RETURN_IF_ERROR(CheckProgress(schedule));
  return max_in_flight ? CheckMemory(schedule, *max_in_flight) : absl::OkStatus();
}

std::vector<int> MaxInFlight(const Schedule& schedule) {
  std::vector<int> most;
  for (const std::vector<Action>& row : schedule.ranks) {
    int in_flight = 0;
    most.push_back(0);
    for (const Action& action : row) {
      in_flight += Growth(action.kind);
      most.back() = std::max(most.back(), in_flight);
    }
  }
  return most;
}

}  // namespace trireme
