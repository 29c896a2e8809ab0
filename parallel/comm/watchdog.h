// parallel/comm/watchdog.h
// Ends a job that hangs, saying which rank keeps which others waiting.
#ifndef TRIREME_PARALLEL_COMM_WATCHDOG_H_
#define TRIREME_PARALLEL_COMM_WATCHDOG_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/comm/hang_report.h"
#include "parallel/comm/operation_log.h"

namespace trireme {

// A thread beside the main one. When this rank has been silent for `seconds`, it raises an alarm: a file in a folder
// that all ranks see. Every rank's watchdog answers with what its rank is doing, since the main threads may be stuck
// but the watchdogs live. If none has made progress lately, one rank prints the report and all exit with kHang;
// otherwise the alarm is taken back and the watch goes on. After a stop was requested, a rank that waits for another
// for 10 s asks in the same way who is still there, and exits with kPeerLost if not all are. Makes no MPI call.
class Watchdog {
 public:
  struct Options {
    double seconds = 0;     // 0: no watch
    std::string directory;  // seen by all ranks; made if missing
    std::string run_id;  // the same on all ranks, another in each start of the job: files of other starts are ignored
    std::string host;    // of this rank, for the report
    int rank = 0, world_size = 1;
    std::function<bool()> stop_requested;  // may be empty; called from the watchdog's thread
    double stop_wait_seconds = 10;
  };

  // `log` outlives this. Rank 0 removes what earlier starts left in the folder.
  Watchdog(OperationLog* log, Options options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void Watch();
  void Guard();
  void Look();
  bool HangsHere() const;
  bool WaitsAfterStop() const;
  void Decide(const std::map<int, RankReport>& reports);
  [[noreturn]] void End(ExitCode code, const std::string& report);
  std::map<int, RankReport> ReadReports() const;
  std::string Path(const std::string& name) const;
  bool Sleep(double seconds);  // False: it is time to end.

  OperationLog* log_;
  Options options_;
  double poll_seconds_;
  bool raised_ = false;   // the alarm now up is ours
  int alarms_ = 0;        // raised by this rank so far
  std::string answered_;  // the alarm last answered
  double answered_at_ = 0;
  double not_before_ = 0;                  // no new alarm before this time
  std::atomic<double> looking_since_ = 0;  // 0: not touching files
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ended_ = false;
  std::thread watcher_, guard_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_WATCHDOG_H_
