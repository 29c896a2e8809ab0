#include "parallel/comm/operation_log.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>

#include "launch/base/log.h"

namespace trireme {

OperationLog::OperationLog() : last_progress_(MonotonicSeconds()) {}

int64_t OperationLog::Start(const std::string& group, const std::string& operation, int64_t bytes, int64_t sent_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  last_progress_ = MonotonicSeconds();
  OperationCount& count = counts_[{group, operation}];
  ++count.calls;
  count.bytes += sent_bytes;
  OperationRecord record;
  record.group = group;
  record.operation = operation;
  record.sequence = ++sequence_[group];
  record.bytes = bytes;
  record.started = last_progress_;
  ring_.push_back(std::move(record));
  if (ring_.size() > kCapacity) {
    ring_.pop_front();
    ++first_ticket_;
  }
  return first_ticket_ + static_cast<int64_t>(ring_.size()) - 1;
}

void OperationLog::Wait(int64_t ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (ticket < first_ticket_) return;
  OperationRecord& record = ring_[ticket - first_ticket_];
  record.waiting = MonotonicSeconds();
  groups_that_tell_waits_.insert(record.group);
}

void OperationLog::SetMembers(const std::string& group, std::vector<int> ranks) {
  std::lock_guard<std::mutex> lock(mutex_);
  members_[group] = std::move(ranks);
}

void OperationLog::Finish(int64_t ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  last_progress_ = MonotonicSeconds();
  if (ticket >= first_ticket_) ring_[ticket - first_ticket_].finished = last_progress_;
}

void OperationLog::Beat(const std::string& phase) {
  std::lock_guard<std::mutex> lock(mutex_);
  phase_ = phase;
  last_progress_ = MonotonicSeconds();
}

void OperationLog::BeginStep(int64_t step) {
  step_ = step;
  Beat(absl::StrCat("step ", step));
}

double OperationLog::SecondsSilent() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return MonotonicSeconds() - last_progress_;
}

std::string OperationLog::Describe(int finished) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const double now = MonotonicSeconds();
  std::string text = absl::StrCat("in ", phase_, ", silent for ", HumanSeconds(now - last_progress_), "\n");
  std::vector<std::string> lines;
  bool waiting = false;
  for (auto record = ring_.rbegin(); record != ring_.rend() && (finished > 0 || record->finished == 0); ++record) {
    std::string line = absl::StrFormat("  %s #%d on group %s, %s", record->operation, record->sequence, record->group,
                                       HumanBytes(record->bytes));
    if (record->finished == 0) {
      const bool blocking = Blocks(*record);
      waiting |= blocking;
      absl::StrAppend(&line, blocking ? ": WAITING for " : ": under way for ", HumanSeconds(now - record->started),
                      "\n");
    } else {
      --finished;
      absl::StrAppend(&line, ": done ", HumanSeconds(now - record->finished), " ago\n");
    }
    lines.push_back(line);
  }
  if (!waiting) absl::StrAppend(&text, "  in no communication\n");
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) text += *line;
  return text;
}

bool OperationLog::Blocks(const OperationRecord& record) const {
  return record.finished == 0 && (record.waiting > 0 || !groups_that_tell_waits_.contains(record.group));
}

OperationSnapshot OperationLog::Snapshot() const {
  std::lock_guard<std::mutex> lock(mutex_);
  OperationSnapshot snapshot;
  snapshot.phase = phase_;
  snapshot.now = MonotonicSeconds();
  snapshot.silent_seconds = snapshot.now - last_progress_;
  for (const OperationRecord& record : ring_) {
    if (Blocks(record)) snapshot.blocking.push_back(record);
  }
  snapshot.entered = sequence_;
  snapshot.members = members_;
  return snapshot;
}

std::map<std::pair<std::string, std::string>, OperationCount> OperationLog::counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

void OperationLog::ResetCounts() {
  std::lock_guard<std::mutex> lock(mutex_);
  counts_.clear();
}

}  // namespace trireme
