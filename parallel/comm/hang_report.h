// parallel/comm/hang_report.h
// From what each rank was doing to who keeps whom waiting.
#ifndef TRIREME_PARALLEL_COMM_HANG_REPORT_H_
#define TRIREME_PARALLEL_COMM_HANG_REPORT_H_

#include <map>
#include <string>
#include <vector>

#include "launch/base/status.h"
#include "parallel/comm/operation_log.h"

namespace trireme {

// One rank's state, as it travels in a file.
struct RankReport {
  struct Operation {
    std::string group, operation;
    int64_t sequence = 0, bytes = 0;
    double seconds = 0;  // under way for so long
  };
  int rank = 0;
  std::string alarm;  // which alarm it answers
  std::string host;
  std::string phase;
  double silent_seconds = 0;
  std::vector<Operation> blocking;  // oldest first
  std::map<std::string, int64_t> entered;
  std::map<std::string, std::vector<int>> members;
  std::string description;  // OperationLog::Describe
};

RankReport MakeRankReport(int rank, const std::string& host, const std::string& alarm, const OperationLog& log);
std::string ToJson(const RankReport& report);
absl::StatusOr<RankReport> RankReportFromJson(const std::string& json);

// One line: which ranks did not enter the operation that others wait in, or called a different one, or do not answer.
std::string Verdict(const std::map<int, RankReport>& reports, int world_size);

// The verdict and every rank's description; ranks that wait in the same operation are told together.
std::string HangReport(const std::map<int, RankReport>& reports, int world_size);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_HANG_REPORT_H_
