// schedule_tool: the pipeline library on a command line, for tests/oracle/schedule_oracle.py.
//   make NAME RANKS STAGES_PER_RANK MICROBATCHES    prints the table as CSV
//   validate FILE...        prints "ok" and the microbatch-stages each rank holds at most, or "refused" and why, per
//   file simulate F I W FILE...  prints the total seconds per file, given the seconds of a stage's forward, input
//   gradient
//                           and weight gradient
//   draw F I W FILE         prints an SVG
#include <absl/strings/numbers.h>
#include <absl/strings/str_join.h>

#include <cstdio>
#include <string>
#include <vector>

#include "launch/base/file.h"
#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/simulate.h"
#include "parallel/pipeline/svg.h"
#include "parallel/pipeline/validate.h"

namespace trireme {
namespace {

absl::StatusOr<Schedule> Read(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(Schedule schedule, ParseCsv(text));
  RETURN_IF_ERROR(Validate(schedule));
  return schedule;
}

absl::StatusOr<std::string> Make(const std::vector<std::string>& args) {
  int numbers[3];
  for (int i = 0; i < 3; ++i) {
    if (!absl::SimpleAtoi(args[i + 2], &numbers[i])) {
      return Error(ExitCode::kConfig, args[i + 2], " is not a number");
    }
  }
  ASSIGN_OR_RETURN(const Schedule schedule, MakeSchedule(args[1], numbers[0], numbers[1], numbers[2]));
  return PrintCsv(schedule);
}

std::string ValidateFiles(const std::vector<std::string>& args) {
  std::string text;
  for (size_t i = 1; i < args.size(); ++i) {
    const absl::StatusOr<Schedule> schedule = Read(args[i]);
    if (schedule.ok()) {
      absl::StrAppend(&text, "ok ", absl::StrJoin(MaxInFlight(*schedule), " "), "\n");
    } else {
      absl::StrAppend(&text, "refused ", std::string(schedule.status().message()), "\n");
    }
  }
  return text;
}

absl::StatusOr<std::string> SimulateFiles(const std::vector<std::string>& args) {
  StageCosts stage;
  double* seconds[] = {&stage.forward_seconds, &stage.input_gradient_seconds, &stage.weight_gradient_seconds};
  for (int i = 0; i < 3; ++i) {
    if (!absl::SimpleAtod(args[i + 1], seconds[i])) return Error(ExitCode::kConfig, args[i + 1], " is not a number");
  }
  std::string text;
  for (size_t i = 4; i < args.size(); ++i) {
    ASSIGN_OR_RETURN(const Schedule schedule, Read(args[i]));
    const Timeline timeline = Simulate(schedule, EqualCosts(schedule, stage));
    text += args[0] == "draw" ? DrawSvg(timeline) : absl::StrCat(timeline.total, "\n");
  }
  return text;
}

absl::StatusOr<std::string> Run(const std::vector<std::string>& args) {
  if (args.size() == 5 && args[0] == "make") return Make(args);
  if (args.size() >= 2 && args[0] == "validate") return ValidateFiles(args);
  if (args.size() >= 5 && args[0] == "simulate") return SimulateFiles(args);
  if (args.size() == 5 && args[0] == "draw") return SimulateFiles(args);
  return Error(ExitCode::kConfig, "expected make, validate, simulate or draw and its arguments");
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  const absl::StatusOr<std::string> text = trireme::Run({argv + 1, argv + argc});
  if (text.ok()) {
    std::fputs(text->c_str(), stdout);
    return 0;
  }
  std::fprintf(stderr, "%s\n", std::string(text.status().message()).c_str());
  return static_cast<int>(trireme::ExitCodeOf(text.status()));
}
