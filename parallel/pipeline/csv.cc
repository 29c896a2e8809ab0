#include "parallel/pipeline/csv.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace trireme {
namespace {

// Far above any real table; a bound on what a number in the text can make us allocate.
constexpr int kMaxIndex = 1 << 24;
constexpr size_t kMaxRanks = 1 << 14;

struct Place {
  size_t line;
  size_t cell;
};

absl::Status BadCell(const Place& place, absl::string_view cell, const std::string& reason) {
  return Error(ExitCode::kData, "line ", place.line, ", cell ", place.cell, " (", cell.substr(0, 40), "): ", reason);
}

// Takes the digits off the front of `text`; nullopt if there are none or they are too many.
std::optional<int> TakeNumber(absl::string_view& text) {
  size_t length = 0;
  while (length < text.size() && absl::ascii_isdigit(text[length])) ++length;
  int value = 0;
  if (!absl::SimpleAtoi(text.substr(0, length), &value) || value >= kMaxIndex) return std::nullopt;
  text.remove_prefix(length);
  return value;
}

absl::Status ParseAction(const Place& place, absl::string_view cell, std::vector<Action>& actions) {
  constexpr const char* kExpected = "expected stage, kind (F, B, I or W) and microbatch, such as 2F0";
  absl::string_view rest = absl::StripAsciiWhitespace(cell);
  const std::optional<int> stage = TakeNumber(rest);
  if (!stage) return BadCell(place, cell, kExpected);
  size_t length = 0;
  while (length < rest.size() && (absl::ascii_isupper(rest[length]) || rest[length] == '_')) ++length;
  const absl::string_view kind = rest.substr(0, length);
  rest.remove_prefix(length);
  for (absl::string_view derived : {"UNSHARD", "RESHARD", "REDUCE_GRAD"}) {
    if (kind == derived && rest.empty()) return absl::OkStatus();
  }
  const std::optional<int> microbatch = TakeNumber(rest);
  if (!microbatch || !rest.empty()) return BadCell(place, cell, kExpected);
  for (absl::string_view derived : {"SEND_F", "RECV_F", "SEND_B", "RECV_B"}) {
    if (kind == derived) return absl::OkStatus();
  }
  for (ActionKind known :
       {ActionKind::kForward, ActionKind::kBackward, ActionKind::kInputGradient, ActionKind::kWeightGradient}) {
    const Action action = {known, *stage, *microbatch};
    if (absl::StrCat(*stage, kind, *microbatch) != ToString(action)) continue;
    actions.push_back(action);
    return absl::OkStatus();
  }
  return BadCell(place, cell, kExpected);
}

absl::Status ParseCell(const Place& place, absl::string_view cell, std::vector<Action>& actions) {
  absl::string_view inner = absl::StripAsciiWhitespace(cell);
  if (inner.empty()) return absl::OkStatus();
  if (!absl::ConsumePrefix(&inner, "(")) return ParseAction(place, cell, actions);
  if (!absl::ConsumeSuffix(&inner, ")OVERLAP_F_B")) {
    return BadCell(place, cell, "expected a pair such as (1F2;0B1)OVERLAP_F_B");
  }
  for (absl::string_view part : absl::StrSplit(inner, ';')) RETURN_IF_ERROR(ParseAction(place, part, actions));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Schedule> ParseCsv(const std::string& text) {
  Schedule schedule;
  schedule.name = "csv";
  size_t num_cells = 0;
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  while (!lines.empty() && absl::StripAsciiWhitespace(lines.back()).empty()) lines.pop_back();
  if (lines.size() > kMaxRanks) {
    return Error(ExitCode::kData, lines.size(), " lines, one per rank; at most ", kMaxRanks, " are read");
  }
  int num_stages = 0;
  for (size_t line = 0; line < lines.size(); ++line) {
    std::vector<Action>& actions = schedule.ranks.emplace_back();
    size_t cell = 0;
    for (absl::string_view field : absl::StrSplit(lines[line], ',')) {
      RETURN_IF_ERROR(ParseCell({line + 1, ++cell}, field, actions));
    }
    if (actions.empty()) return Error(ExitCode::kData, "line ", line + 1, ": rank ", line, " has nothing to run");
    num_cells += actions.size();
    for (const Action& action : actions) {
      num_stages = std::max(num_stages, action.stage + 1);
      schedule.num_microbatches = std::max(schedule.num_microbatches, action.microbatch + 1);
    }
  }
  if (lines.empty()) return Error(ExitCode::kData, "no lines; expected one per rank");
  // Before anything is allocated for what the numbers claim; Validate() counts exactly.
  if (int64_t{num_stages} * schedule.num_microbatches > static_cast<int64_t>(num_cells)) {
    return Error(ExitCode::kData, num_cells, " actions cannot run the forward and backward of ",
                 schedule.num_microbatches, " microbatches on ", num_stages,
                 " stages; the largest microbatch and stage are wrong, or cells are missing");
  }
  schedule.rank_of_stage.assign(num_stages, -1);
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    for (const Action& action : schedule.ranks[rank]) {
      int& owner = schedule.rank_of_stage[action.stage];
      if (owner != -1 && owner != rank) {
        return Error(ExitCode::kData, "line ", rank + 1, " (", ToString(action), "): stage ", action.stage,
                     " already runs on rank ", owner, " (line ", owner + 1, ")");
      }
      owner = rank;
    }
  }
  const auto orphan = std::find(schedule.rank_of_stage.begin(), schedule.rank_of_stage.end(), -1);
  if (orphan != schedule.rank_of_stage.end()) {
    return Error(ExitCode::kData, "no rank runs stage ", orphan - schedule.rank_of_stage.begin(), " of ", num_stages);
  }
  return schedule;
}

std::string PrintCsv(const Schedule& schedule) {
  std::string text;
  for (const std::vector<Action>& actions : schedule.ranks) {
    absl::StrAppend(
        &text, absl::StrJoin(actions, ",", [](std::string* out, const Action& a) { out->append(ToString(a)); }), "\n");
  }
  return text;
}

}  // namespace trireme
