#include "parallel/comm/hang_report.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

#include "launch/base/json.h"
#include "launch/base/log.h"
#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;
using Operation = RankReport::Operation;

std::string Verb(const std::vector<int>& ranks, const char* one, const char* several) {
  return ranks.size() == 1 ? one : several;
}

std::string Name(const Operation& operation) {
  return absl::StrCat(operation.operation, " #", operation.sequence, " of group ", operation.group);
}

// Identifies an operation over ranks: two groups may share their name, but then not their members.
using Place = std::tuple<std::string, std::vector<int>, int64_t>;

std::vector<int> MembersOf(const RankReport& report, const std::string& group) {
  const auto members = report.members.find(group);
  return members == report.members.end() ? std::vector<int>() : members->second;
}

Place PlaceOf(const RankReport& report, const Operation& operation) {
  return {operation.group, MembersOf(report, operation.group), operation.sequence};
}

// Whether `report`'s rank should have come to the operation that `waiting` waits in and did not.
bool Missed(const RankReport& report, const RankReport& waiting, const Operation& operation) {
  const std::vector<int> members = MembersOf(waiting, operation.group);
  if (!members.empty() && std::find(members.begin(), members.end(), report.rank) == members.end()) return false;
  const auto entered = report.entered.find(operation.group);
  return entered == report.entered.end() ? !members.empty() : entered->second < operation.sequence;
}

struct Sorted {
  std::vector<int> missing, idle, waiting;
  std::map<Place, std::vector<int>> places;  // of the oldest operation each rank waits in
};

Sorted Sort(const std::map<int, RankReport>& reports, int world_size) {
  Sorted sorted;
  for (int rank = 0; rank < world_size; ++rank) {
    const auto report = reports.find(rank);
    if (report == reports.end()) {
      sorted.missing.push_back(rank);
    } else if (report->second.blocking.empty()) {
      sorted.idle.push_back(rank);
    } else {
      sorted.waiting.push_back(rank);
      sorted.places[PlaceOf(report->second, report->second.blocking[0])].push_back(rank);
    }
  }
  return sorted;
}

// "ranks 0, 2 wait in all_gather #17 of group data_shard; rank 3 waits in ...".
std::string WhoWaitsWhere(const std::map<int, RankReport>& reports, const Sorted& sorted) {
  std::vector<std::string> parts;
  for (const auto& [place, ranks] : sorted.places) {
    const Operation& operation = reports.at(ranks[0]).blocking[0];
    parts.push_back(absl::StrCat(RankNames(ranks), Verb(ranks, " waits", " wait"), " in ", Name(operation), " (",
                                 HumanBytes(operation.bytes), ")"));
  }
  return absl::StrJoin(parts, "; ");
}

// The verdict on one rank that is in no communication.
std::string VerdictOnIdle(const RankReport& idle, const std::map<int, RankReport>& reports, const Sorted& sorted) {
  const std::string silent =
      absl::StrCat("it has been silent for ", HumanSeconds(idle.silent_seconds), " in ", idle.phase);
  for (const auto& [place, ranks] : sorted.places) {
    const RankReport& waiting = reports.at(ranks[0]);
    const Operation& operation = waiting.blocking[0];
    if (!Missed(idle, waiting, operation)) continue;
    return absl::StrCat("rank ", idle.rank, " never entered ", Name(operation), " (", silent, "); ", RankNames(ranks),
                        Verb(ranks, " waits", " wait"), " there");
  }
  return absl::StrCat("rank ", idle.rank, " is in no communication (", silent, ")");
}

// Ranks that came to the same place of a group with different calls; empty if there are none.
std::string DifferentCalls(const std::map<int, RankReport>& reports, const Sorted& sorted) {
  for (const auto& [place, ranks] : sorted.places) {
    const Operation& first = reports.at(ranks[0]).blocking[0];
    std::map<std::string, std::vector<int>> calls;
    for (int rank : ranks) {
      const Operation& operation = reports.at(rank).blocking[0];
      // What two pipeline ranks exchange may differ in size.
      const bool size_counts = operation.operation != "exchange" || first.operation != "exchange";
      calls[size_counts ? absl::StrCat(operation.operation, " of ", operation.bytes, " B") : operation.operation]
          .push_back(rank);
    }
    if (calls.size() < 2) continue;
    std::vector<std::string> parts;
    for (const auto& [call, callers] : calls) parts.push_back(absl::StrCat(RankNames(callers), ": ", call));
    return absl::StrCat("ranks called different collectives as #", first.sequence, " of group ", first.group, ": ",
                        absl::StrJoin(parts, "; "));
  }
  return "";
}

}  // namespace

RankReport MakeRankReport(int rank, const std::string& host, const std::string& alarm, const OperationLog& log) {
  const OperationSnapshot snapshot = log.Snapshot();
  RankReport report;
  report.rank = rank;
  report.alarm = alarm;
  report.host = host;
  report.phase = snapshot.phase;
  report.silent_seconds = snapshot.silent_seconds;
  for (const OperationRecord& record : snapshot.blocking) {
    report.blocking.push_back({record.group, record.operation, record.sequence, record.bytes,
                               snapshot.now - (record.waiting > 0 ? record.waiting : record.started)});
  }
  report.entered = snapshot.entered;
  report.members = snapshot.members;
  report.description = log.Describe(16);
  return report;
}

std::string ToJson(const RankReport& report) {
  Json blocking = Json::array();
  for (const Operation& operation : report.blocking) {
    blocking.push_back({{"group", operation.group},
                        {"operation", operation.operation},
                        {"sequence", operation.sequence},
                        {"bytes", operation.bytes},
                        {"seconds", operation.seconds}});
  }
  const Json json = {{"rank", report.rank},
                     {"alarm", report.alarm},
                     {"host", report.host},
                     {"phase", report.phase},
                     {"silent_seconds", report.silent_seconds},
                     {"blocking", blocking},
                     {"entered", report.entered},
                     {"members", report.members},
                     {"description", report.description}};
  return DumpJson(json, 1) + "\n";
}

absl::StatusOr<RankReport> RankReportFromJson(const std::string& text) {
  JsonProblem problem;
  const std::optional<Json> json = ParseJson<Json>(text, {}, &problem);
  RankReport report;
  std::string missing = json.has_value() ? "" : "it is not JSON";
  const auto text_at = [&missing](const Json& object, const char* key) {
    const std::string* found = JsonText(JsonMember(object, key));
    if (found == nullptr) missing = key;
    return found == nullptr ? std::string() : *found;
  };
  const auto integer_at = [&missing](const Json& object, const char* key) {
    const std::optional<int64_t> found = JsonInteger(JsonMember(object, key));
    if (!found.has_value()) missing = key;
    return found.value_or(0);
  };
  const auto number_at = [&missing](const Json& object, const char* key) {
    const std::optional<double> found = JsonNumber(JsonMember(object, key));
    if (!found.has_value()) missing = key;
    return found.value_or(0);
  };
  const Json object = json.value_or(Json());
  report.rank = static_cast<int>(integer_at(object, "rank"));
  report.alarm = text_at(object, "alarm");
  report.host = text_at(object, "host");
  report.phase = text_at(object, "phase");
  report.silent_seconds = number_at(object, "silent_seconds");
  report.description = text_at(object, "description");
  for (const Json& entry : JsonList(JsonMember(object, "blocking"))) {
    report.blocking.push_back({text_at(entry, "group"), text_at(entry, "operation"), integer_at(entry, "sequence"),
                               integer_at(entry, "bytes"), number_at(entry, "seconds")});
  }
  const Json &entered = JsonMember(object, "entered"), &members = JsonMember(object, "members");
  if (!JsonMember(object, "blocking").is_array()) missing = "blocking";
  if (!entered.is_object()) missing = "entered";
  if (!members.is_object()) missing = "members";
  for (const auto& [group, value] : entered.items()) report.entered[group] = integer_at(entered, group.c_str());
  for (const auto& [group, ranks] : members.items()) {
    std::vector<int>& list = report.members[group];
    for (const Json& rank : JsonList(ranks)) {
      const std::optional<int64_t> one = JsonInteger(rank);
      if (!one.has_value() || *one < 0 || *one > INT32_MAX) missing = "members";
      list.push_back(static_cast<int>(one.value_or(0)));
    }
  }
  if (missing.empty()) return report;
  return Error(ExitCode::kData, "hang report: not a rank's report: ", missing, " is missing or wrong");
}

std::string Verdict(const std::map<int, RankReport>& reports, int world_size) {
  const Sorted sorted = Sort(reports, world_size);
  const std::string waits = WhoWaitsWhere(reports, sorted);
  if (!sorted.missing.empty()) {
    return absl::StrCat(RankNames(sorted.missing), Verb(sorted.missing, " does", " do"),
                        " not answer: stopped, killed, or on a lost machine", waits.empty() ? "" : "; ", waits);
  }
  if (sorted.waiting.empty()) {
    std::vector<std::string> parts;
    for (int rank : sorted.idle) parts.push_back(absl::StrCat("rank ", rank, " in ", reports.at(rank).phase));
    parts.resize(std::min<size_t>(parts.size(), 16));
    return absl::StrCat("no rank waits for another; all are silent in their own work: ", absl::StrJoin(parts, ", "));
  }
  if (!sorted.idle.empty()) {
    std::vector<std::string> parts;
    for (int rank : sorted.idle) parts.push_back(VerdictOnIdle(reports.at(rank), reports, sorted));
    parts.resize(std::min<size_t>(parts.size(), 4));
    return absl::StrJoin(parts, "; ");
  }
  const std::string different = DifferentCalls(reports, sorted);
  if (!different.empty()) return different;
  if (sorted.places.size() > 1) return absl::StrCat("ranks wait for each other in different collectives: ", waits);
  return absl::StrCat("all ranks entered the same operation but it does not end (network?): ", waits);
}

std::string HangReport(const std::map<int, RankReport>& reports, int world_size) {
  std::string text = absl::StrCat("hang: ", Verdict(reports, world_size), "\n");
  const Sorted sorted = Sort(reports, world_size);
  const std::string waits = WhoWaitsWhere(reports, sorted);
  if (!waits.empty()) absl::StrAppend(&text, "waiting: ", waits, "\n");
  if (!sorted.idle.empty()) absl::StrAppend(&text, "in no communication: ", RankNames(sorted.idle), "\n");
  if (!sorted.missing.empty()) absl::StrAppend(&text, "no answer: ", RankNames(sorted.missing), "\n");
  std::map<Place, int> told;
  int described = 0;
  for (const auto& [rank, report] : reports) {
    // Where many ranks are in the same place, two are described.
    if (!report.blocking.empty() && ++told[PlaceOf(report, report.blocking[0])] > 2) continue;
    if (++described > 16) break;
    absl::StrAppend(&text, "rank ", rank, " on ", report.host, ": ", report.description);
  }
  return text;
}

}  // namespace trireme
