#include "parallel/pipeline/schedule.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstdint>

#include "launch/base/file.h"
#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/generators.h"
#include "parallel/pipeline/validate.h"

namespace trireme {
namespace {

struct Generator {
  const char* name;
  int min_stages_per_rank;
  int max_stages_per_rank;
  Schedule (*make)(const ScheduleShape&);
};

// More stages than layers anybody has, and a table that fits in memory.
constexpr int kMaxStages = 1 << 14;
constexpr int64_t kMaxStageMicrobatches = int64_t{1} << 24;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 28;

constexpr Generator kGenerators[] = {
    {"GPipe", 1, 1, GPipe},
    {"1F1B", 1, 1, OneForwardOneBackward},
    {"Interleaved1F1B", 2, kMaxStages, Interleaved},
    {"ZB-H1", 1, 1, ZeroBubbleH1},
    {"ZB-V", 2, 2, ZeroBubbleV},
};

absl::StatusOr<Schedule> ReadSchedule(const std::string& path, const ScheduleShape& wanted) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  absl::StatusOr<Schedule> schedule = ParseCsv(text);
  if (!schedule.ok()) return Annotate(schedule.status(), absl::StrCat("schedule ", path));
  schedule->name = path;
  if (absl::Status status = Validate(*schedule); !status.ok()) {
    return Annotate(status, absl::StrCat("schedule ", path));
  }
  if (schedule->num_ranks() != wanted.num_ranks || schedule->num_microbatches != wanted.num_microbatches) {
    return Error(ExitCode::kConfig, "schedule ", path, " is for ", schedule->num_ranks(), " ranks and ",
                 schedule->num_microbatches, " microbatches, the run has ", wanted.num_ranks, " and ",
                 wanted.num_microbatches, "; write the table for these or change the run");
  }
  for (int rank = 0; rank < wanted.num_ranks; ++rank) {
    const auto count = std::count(schedule->rank_of_stage.begin(), schedule->rank_of_stage.end(), rank);
    if (count == wanted.stages_per_rank) continue;
    return Error(ExitCode::kConfig, "schedule ", path, " gives rank ", rank, " ", count, " stages, the run has ",
                 wanted.stages_per_rank, " per rank; set the number of stages per rank to ", count,
                 " if all ranks have as many");
  }
  return schedule;
}

}  // namespace

std::string ToString(const Action& action) {
  switch (action.kind) {
    case ActionKind::kForward:
      return absl::StrCat(action.stage, "F", action.microbatch);
    case ActionKind::kBackward:
      return absl::StrCat(action.stage, "B", action.microbatch);
    case ActionKind::kInputGradient:
      return absl::StrCat(action.stage, "I", action.microbatch);
    case ActionKind::kWeightGradient:
      return absl::StrCat(action.stage, "W", action.microbatch);
    case ActionKind::kUnshard:
      return absl::StrCat(action.stage, "UNSHARD");
    case ActionKind::kReshard:
      return absl::StrCat(action.stage, "RESHARD");
    case ActionKind::kReduceGradients:
      return absl::StrCat(action.stage, "REDUCE_GRAD");
  }
  TRIREME_CHECK(false, "action of kind ", static_cast<int>(action.kind));
}

std::vector<std::string> ScheduleNames() {
  std::vector<std::string> names;
  for (const Generator& generator : kGenerators) names.push_back(generator.name);
  return names;
}

absl::StatusOr<Schedule> MakeSchedule(const std::string& name, int num_ranks, int stages_per_rank,
                                      int num_microbatches) {
  if (num_ranks < 1 || stages_per_rank < 1 || num_microbatches < 1) {
    return Error(ExitCode::kConfig, "schedule ", name, ": ", num_ranks, " ranks, ", stages_per_rank,
                 " stages per rank and ", num_microbatches, " microbatches must all be at least 1");
  }
  const int64_t num_stages = int64_t{num_ranks} * stages_per_rank;
  if (num_stages > kMaxStages || num_stages * num_microbatches > kMaxStageMicrobatches) {
    return Error(ExitCode::kConfig, "schedule ", name, ": ", num_stages, " stages and ", num_microbatches,
                 " microbatches make too large a table; at most ", kMaxStages, " stages, and ", kMaxStageMicrobatches,
                 " microbatches summed over the stages; use a larger micro batch");
  }
  const ScheduleShape shape = {num_ranks, stages_per_rank, num_microbatches};
  if (absl::EndsWith(name, ".csv")) return ReadSchedule(name, shape);
  for (const Generator& generator : kGenerators) {
    if (name != generator.name) continue;
    if (stages_per_rank < generator.min_stages_per_rank || stages_per_rank > generator.max_stages_per_rank) {
      const bool exact = generator.min_stages_per_rank == generator.max_stages_per_rank;
      return Error(ExitCode::kConfig, "schedule ", name, " needs ", exact ? "exactly " : "at least ",
                   generator.min_stages_per_rank, " stages per rank, not ", stages_per_rank,
                   "; set the number of stages per rank to ", generator.min_stages_per_rank,
                   " or take another schedule: ", absl::StrJoin(ScheduleNames(), ", "));
    }
    Schedule schedule = generator.make(shape);
    schedule.name = name;
    return schedule;
  }
  return Error(ExitCode::kConfig, "unknown schedule \"", name, "\"; known are ", absl::StrJoin(ScheduleNames(), ", "),
               " and files ending in .csv");
}

}  // namespace trireme
