// parallel/comm/operation_log.h
// What this rank communicated: counters for accounting, and a ring of the last operations for when something hangs.
#ifndef TRIREME_PARALLEL_COMM_OPERATION_LOG_H_
#define TRIREME_PARALLEL_COMM_OPERATION_LOG_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

struct OperationRecord {
  std::string group;      // "data_shard"
  std::string operation;  // "all_gather"
  int64_t sequence = 0;   // number of this operation within its group, from 1
  int64_t bytes = 0;      // of the larger tensor
  double started = 0;     // MonotonicSeconds()
  double waiting = 0;     // since when this rank does nothing but wait for it; 0: not yet, or not known
  double finished = 0;    // 0: under way
};

struct OperationCount {
  int64_t calls = 0;
  int64_t bytes = 0;  // sent by this rank
};

// What a rank is doing at one moment.
struct OperationSnapshot {
  std::string phase;
  double silent_seconds = 0;
  double now = 0;                                   // MonotonicSeconds()
  std::vector<OperationRecord> blocking;            // under way and waited for, oldest first
  std::map<std::string, int64_t> entered;           // group: number of its last operation that this rank entered
  std::map<std::string, std::vector<int>> members;  // group: its ranks in the job, where they were told
};

// One per process, shared by all groups. Thread-safe: the watchdog reads it from its own thread.
class OperationLog {
 public:
  OperationLog();

  // Returns a ticket for Finish. `sent_bytes`: what this rank sends.
  int64_t Start(const std::string& group, const std::string& operation, int64_t bytes, int64_t sent_bytes);
  // Optional: from here on the rank only waits for this operation. In groups that never call it, all operations under
  // way count as waited for.
  void Wait(int64_t ticket);
  void Finish(int64_t ticket);
  // Optional: the ranks of a group, numbered as in the job; groups of the same name but other ranks can then be told
  // apart.
  void SetMembers(const std::string& group, std::vector<int> ranks);

  // Notes that the main thread is alive and what it does ("step 12", "saving"); any operation does too.
  void Beat(const std::string& phase);

  // Beat("step N"), and marks every collective started from here on as the step's: groups compare it between ranks, so
  // that one that a rank left out is noticed although the next of its kind looks the same. All ranks, or none.
  void BeginStep(int64_t step);
  int64_t step() const { return step_; }  // 0 before the first

  // Seconds since the last sign of progress, or since the log was made.
  double SecondsSilent() const;

  // One line per operation under way and the last `finished` done, newest last; with the phase.
  std::string Describe(int finished) const;

  OperationSnapshot Snapshot() const;

  // Calls and bytes so far, by (group, operation).
  std::map<std::pair<std::string, std::string>, OperationCount> counts() const;
  void ResetCounts();

 private:
  bool Blocks(const OperationRecord& record) const;

  static constexpr size_t kCapacity = 256;
  mutable std::mutex mutex_;
  std::deque<OperationRecord> ring_;
  int64_t first_ticket_ = 0;  // ticket of ring_.front()
  std::map<std::string, int64_t> sequence_;
  std::map<std::pair<std::string, std::string>, OperationCount> counts_;
  std::string phase_ = "starting";
  std::atomic<int64_t> step_ = 0;
  std::map<std::string, std::vector<int>> members_;
  std::set<std::string> groups_that_tell_waits_;
  double last_progress_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_OPERATION_LOG_H_
