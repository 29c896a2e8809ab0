// launch/log.h
// What a person reads while a job runs. Every line goes to stderr, whole, with the rank when there are several.
#ifndef TRIREME_LAUNCH_LOG_H_
#define TRIREME_LAUNCH_LOG_H_

#include <absl/strings/str_cat.h>

#include <cstdint>
#include <string>

namespace trireme {

enum class Severity { kInfo, kWarning, kError };

// Set once at start-up; with world_size 1 no rank is printed.
void SetLogRank(int rank, int world_size);

// Errors are printed by any rank; the rest, which all ranks see alike, by rank 0 only. Thread-safe.
void WriteLog(Severity severity, const std::string& message);

template <typename... Args>
void Info(const Args&... args) {
  WriteLog(Severity::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void Warning(const Args&... args) {
  WriteLog(Severity::kWarning, absl::StrCat(args...));
}
template <typename... Args>
void ErrorLog(const Args&... args) {
  WriteLog(Severity::kError, absl::StrCat(args...));
}

// Shows `line` as the live last line of the terminal, replaced by the next call; nothing when stderr is not a
// terminal or this is not rank 0. Log lines appear above it. An empty line removes it.
void ShowLiveLine(const std::string& line);
bool HasTerminal();

// "1.2 MB", "3.4k", "1 h 02 min"
std::string HumanBytes(double bytes);
std::string HumanCount(double count);
std::string HumanSeconds(double seconds);

// Rate and ETA of long work: a live line on a terminal, otherwise a log line at most every 10 s and one at the end.
class Progress {
 public:
  // `total` <= 0: unknown. `unit` as in "tokens", or "B" to print bytes.
  Progress(std::string label, int64_t total, std::string unit);
  ~Progress();
  void Update(int64_t done);  // Absolute amount done so far. Not thread-safe.
  void Finish();              // Prints the summary line once.

 private:
  std::string Describe(double now) const;

  std::string label_;
  int64_t total_;
  std::string unit_;
  int64_t done_ = 0;
  double start_;
  double last_shown_;
  bool finished_ = false;
};

// Seconds on a monotonic clock.
double MonotonicSeconds();

}  // namespace trireme

#endif  // TRIREME_LAUNCH_LOG_H_
