// parallel/comm/operation_log.h
// What this rank communicated: counters for accounting, and a ring of the last operations for when something hangs.
#ifndef TRIREME_PARALLEL_COMM_OPERATION_LOG_H_
#define TRIREME_PARALLEL_COMM_OPERATION_LOG_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace trireme {

struct OperationRecord {
  std::string group;      // "data_shard"
  std::string operation;  // "all_gather"
  int64_t sequence = 0;   // number of this operation within its group, from 1
  int64_t bytes = 0;      // of the larger tensor
  double started = 0;     // MonotonicSeconds()
  double finished = 0;    // 0: under way
};

struct OperationCount {
  int64_t calls = 0;
  int64_t bytes = 0;  // sent by this rank
};

// One per process, shared by all groups. Thread-safe: the watchdog reads it from its own thread.
class OperationLog {
 public:
  // Returns a ticket for Finish. `sent_bytes`: what this rank sends.
  int64_t Start(const std::string& group, const std::string& operation, int64_t bytes, int64_t sent_bytes);
  void Finish(int64_t ticket);

  // Notes that the main thread is alive and what it does ("step 12", "saving"); any operation does too.
  void Beat(const std::string& phase);

  // Seconds since the last sign of progress.
  double SecondsSilent() const;

  // One line per operation under way and the last `finished` done, newest last; with the phase.
  std::string Describe(int finished) const;

  // Calls and bytes so far, by (group, operation).
  std::map<std::pair<std::string, std::string>, OperationCount> counts() const;
  void ResetCounts();

 private:
  static constexpr size_t kCapacity = 256;
  mutable std::mutex mutex_;
  std::deque<OperationRecord> ring_;
  int64_t first_ticket_ = 0;  // ticket of ring_.front()
  std::map<std::string, int64_t> sequence_;
  std::map<std::pair<std::string, std::string>, OperationCount> counts_;
  std::string phase_ = "starting";
  double last_progress_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_OPERATION_LOG_H_
