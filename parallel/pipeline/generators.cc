#include "parallel/pipeline/generators.h"

#include <algorithm>
#include <cstdint>
#include <optional>

namespace trireme {
namespace {

constexpr ActionKind kF = ActionKind::kForward;
constexpr ActionKind kB = ActionKind::kBackward;
constexpr ActionKind kI = ActionKind::kInputGradient;
constexpr ActionKind kW = ActionKind::kWeightGradient;

Schedule StagesDealtRound(const ScheduleShape& shape) {
  Schedule schedule;
  schedule.num_microbatches = shape.num_microbatches;
  schedule.ranks.resize(shape.num_ranks);
  for (int s = 0; s < shape.num_ranks * shape.stages_per_rank; ++s) {
    schedule.rank_of_stage.push_back(s % shape.num_ranks);
  }
  return schedule;
}

}  // namespace

Schedule GPipe(const ScheduleShape& shape) {
  Schedule schedule = StagesDealtRound(shape);
  for (int rank = 0; rank < shape.num_ranks; ++rank) {
    for (ActionKind kind : {kF, kB}) {
      for (int m = 0; m < shape.num_microbatches; ++m) schedule.ranks[rank].push_back({kind, rank, m});
    }
  }
  return schedule;
}

Schedule OneForwardOneBackward(const ScheduleShape& shape) {
  Schedule schedule = StagesDealtRound(shape);
  for (int rank = 0; rank < shape.num_ranks; ++rank) {
    const int lead = shape.num_ranks - 1 - rank;
    for (int i = 0; i < shape.num_microbatches + lead; ++i) {
      if (i < shape.num_microbatches) schedule.ranks[rank].push_back({kF, rank, i});
      if (i >= lead) schedule.ranks[rank].push_back({kB, rank, i - lead});
    }
  }
  return schedule;
}

Schedule Interleaved(const ScheduleShape& shape) {
  const auto [num_ranks, stages_per_rank, num_microbatches] = shape;
  Schedule schedule = StagesDealtRound(shape);
  struct Visit {
    int chunk;
    int microbatch;
  };
  // A group passes through a rank's first chunk, then its second, ... A group smaller than num_ranks would reach the
  // second chunk before its own first microbatch has come round, so a remainder is spread over the groups.
  const int num_groups = std::max(1, num_microbatches / num_ranks);
  std::vector<Visit> visits;
  for (int group = 0, begin = 0; group < num_groups; ++group) {
    const int end = begin + num_microbatches / num_groups + (group < num_microbatches % num_groups ? 1 : 0);
    for (int chunk = 0; chunk < stages_per_rank; ++chunk) {
      for (int m = begin; m < end; ++m) visits.push_back({chunk, m});
    }
    begin = end;
  }
  const int largest_group = (num_microbatches + num_groups - 1) / num_groups;
  const int num_visits = static_cast<int>(visits.size());
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::vector<Action>& actions = schedule.ranks[rank];
    const int lead = std::min(num_visits, (stages_per_rank - 1) * largest_group + 2 * (num_ranks - 1 - rank));
    for (int i = 0; i < num_visits + lead; ++i) {
      if (i < num_visits) actions.push_back({kF, visits[i].chunk * num_ranks + rank, visits[i].microbatch});
      if (i < lead) continue;
      const Visit& back = visits[i - lead];
      actions.push_back({kB, (stages_per_rank - 1 - back.chunk) * num_ranks + rank, back.microbatch});
    }
  }
  return schedule;
}

Schedule ZeroBubbleH1(const ScheduleShape& shape) {
  Schedule schedule = StagesDealtRound(shape);
  const int num_microbatches = shape.num_microbatches;
  for (int rank = 0; rank < shape.num_ranks; ++rank) {
    const int lead = shape.num_ranks - 1 - rank;
    for (int i = 0; i < num_microbatches + lead + rank; ++i) {
      const int input = i - lead, weight = input - rank;
      if (i < num_microbatches) schedule.ranks[rank].push_back({kF, rank, i});
      if (input >= 0 && input < num_microbatches) schedule.ranks[rank].push_back({kI, rank, input});
      if (weight >= 0) schedule.ranks[rank].push_back({kW, rank, weight});
    }
  }
  return schedule;
}

Schedule ZeroBubbleV(const ScheduleShape& shape) {
  const int num_ranks = shape.num_ranks, num_microbatches = shape.num_microbatches, last = 2 * num_ranks - 1;
  Schedule schedule;
  schedule.num_microbatches = num_microbatches;
  schedule.ranks.resize(num_ranks);
  for (int s = 0; s <= last; ++s) schedule.rank_of_stage.push_back(std::min(s, last - s));

  // Microbatches done per stage, counted before and with the current time unit.
  struct Done {
    int forward = 0, input = 0, weight = 0;
  };
  std::vector<Done> before(last + 1), now(last + 1);
  const auto pick = [&](int rank) -> std::optional<Action> {
    const int down = rank, up = last - rank;
    const auto forward_ready = [&](int s) {
      const int m = before[s].forward;
      return m < num_microbatches && (s == 0 || before[s - 1].forward > m);
    };
    const auto input_ready = [&](int s) {
      const int m = before[s].input;
      return before[s].forward > m && (s == last || before[s + 1].input > m);
    };
    const int held = before[down].forward + before[up].forward - before[down].weight - before[up].weight;
    const bool full = held == 2 * num_ranks;
    std::optional<Action> weight;
    for (int s : {up, down}) {
      if (before[s].weight == before[s].input) continue;
      if (!weight || before[s].weight < weight->microbatch) weight = Action{kW, s, before[s].weight};
    }
    // Only a W makes room for the forwards that the ranks above wait for.
    if (full && before[up].forward < num_microbatches && weight) return weight;
    for (int s : {up, down}) {
      if (!full && forward_ready(s)) return Action{kF, s, before[s].forward};
    }
    std::optional<Action> input;
    for (int s : {up, down}) {
      if (input_ready(s) && (!input || before[s].input < input->microbatch)) input = Action{kI, s, before[s].input};
    }
    return input ? input : weight;
  };
  constexpr int64_t kActionsPerMicrobatch = 6;  // F, I, W on both stages
  for (int64_t left = kActionsPerMicrobatch * num_microbatches * num_ranks; left > 0;) {
    const int64_t left_before = left;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const std::optional<Action> action = pick(rank);
      if (!action) continue;
      schedule.ranks[rank].push_back(*action);
      Done& done = now[action->stage];
      ++(action->kind == kF ? done.forward : action->kind == kI ? done.input : done.weight);
      --left;
    }
    TRIREME_CHECK(left < left_before, "ZB-V: no rank can go on");
    before = now;
  }
  return schedule;
}

}  // namespace trireme
