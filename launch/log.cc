#include "launch/log.h"

#include <absl/strings/str_format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

namespace trireme {
namespace {

// The only process-wide state: which rank this is, and what stands on the last terminal line.
int log_rank = 0;
int log_world_size = 1;
std::mutex log_mutex;
bool live_line_shown = false;

void EraseLiveLine() {
  if (live_line_shown) std::fputs("\r\033[K", stderr);
  live_line_shown = false;
}

}  // namespace

void SetLogRank(int rank, int world_size) {
  log_rank = rank;
  log_world_size = world_size;
}

void WriteLog(Severity severity, const std::string& message) {
  if (severity != Severity::kError && log_rank != 0) return;
  std::string line;
  if (severity == Severity::kError) line = "error: ";
  if (severity == Severity::kWarning) line = "warning: ";
  if (log_world_size > 1 && severity == Severity::kError) line = absl::StrCat("[rank ", log_rank, "] ", line);
  line += message;
  line += '\n';
  std::lock_guard<std::mutex> lock(log_mutex);
  EraseLiveLine();
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

bool HasTerminal() {
  static const bool has_terminal = isatty(STDERR_FILENO) == 1;
  return has_terminal;
}

void ShowLiveLine(const std::string& line) {
  if (log_rank != 0 || !HasTerminal()) return;
  std::lock_guard<std::mutex> lock(log_mutex);
  EraseLiveLine();
  if (line.empty()) return;
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  live_line_shown = true;
}

std::string HumanBytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  int unit = 0;
  while (std::abs(bytes) >= 1000 && unit < 5) {
    bytes /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, bytes, units[unit]);
}

std::string HumanCount(double count) {
  const char* units[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  while (std::abs(count) >= 1000 && unit < 4) {
    count /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f%s", unit == 0 ? 0 : 2, count, units[unit]);
}

std::string HumanSeconds(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 60) return absl::StrFormat("%.1f s", seconds);
  const int64_t whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  return absl::StrFormat("%d h %02d min", whole / 3600, whole % 3600 / 60);
}

double MonotonicSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      total_(total),
      unit_(std::move(unit)),
      start_(MonotonicSeconds()),
      last_shown_(start_) {}

Progress::~Progress() {
  if (!finished_) ShowLiveLine("");
}

std::string Progress::Describe(double now) const {
  const auto amount = [this](double value) {
    return unit_ == "B" ? HumanBytes(value) : absl::StrCat(HumanCount(value), " ", unit_);
  };
  const double seconds = now - start_;
  const double rate = seconds > 0 ? done_ / seconds : 0;
  std::string text = absl::StrCat(label_, ": ", amount(done_));
  if (total_ > 0) absl::StrAppend(&text, " of ", amount(total_), absl::StrFormat(" (%.0f %%)", 100.0 * done_ / total_));
  absl::StrAppend(&text, ", ", amount(rate), "/s");
  if (finished_) {
    absl::StrAppend(&text, ", took ", HumanSeconds(seconds));
  } else if (total_ > 0 && rate > 0) {
    absl::StrAppend(&text, ", ETA ", HumanSeconds((total_ - done_) / rate));
  }
  return text;
}

void Progress::Update(int64_t done) {
  done_ = done;
  const double now = MonotonicSeconds();
  if (now - last_shown_ < (HasTerminal() ? 0.2 : 10.0)) return;
  last_shown_ = now;
  if (HasTerminal()) {
    ShowLiveLine(Describe(now));
  } else {
    Info(Describe(now));
  }
}

void Progress::Finish() {
  if (finished_) return;
  finished_ = true;
  Info(Describe(MonotonicSeconds()));
}

}  // namespace trireme
