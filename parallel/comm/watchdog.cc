// Files, all in the folder, ID being the start's: ID.alarm holds the name of the alarm now up; ID.rank-N.json is rank
// N's answer; ID.claim is made by the one rank that prints.
#include "parallel/comm/watchdog.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>

#include "launch/base/exception.h"
#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "launch/base/process.h"

namespace trireme {
namespace {

constexpr double kAnswerSeconds = 3;       // that ranks have to answer an alarm
constexpr double kStuckFilesSeconds = 20;  // after which the folder itself counts as hanging
constexpr uint64_t kMaxReportBytes = 1 << 20;

// Without fsync: the readers are alive now, and a hanging disk must not hold the watchdog up.
bool WriteWhole(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return false;
  const bool written = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  ::close(fd);
  return written;
}

// link() makes the file appear whole, for one rank only. Where a file system has no links, rename() does the first, and
// of ranks that raise an alarm at once all but the last answer to another's.
bool Appear(const std::string& draft, const std::string& path) {
  if (::link(draft.c_str(), path.c_str()) == 0) return true;
  return errno != EEXIST && ::rename(draft.c_str(), path.c_str()) == 0;
}

void RemoveLeftovers(const std::string& directory) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(directory);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (absl::EndsWith(name, ".alarm") || absl::EndsWith(name, ".claim") || absl::StrContains(name, ".rank-"))
      ::unlink(absl::StrCat(directory, "/", name).c_str());
  }
}

}  // namespace

Watchdog::Watchdog(OperationLog* log, Options options)
    : log_(log), options_(std::move(options)), poll_seconds_(std::clamp(options_.seconds / 20, 0.05, 5.0)) {
  if (options_.seconds <= 0) return;
  const absl::Status made = MakeDirectories(options_.directory);
  if (!made.ok())
    Warning("watchdog: ", std::string(made.message()), "; a hang will be reported by each rank for itself");
  if (options_.rank == 0) RemoveLeftovers(options_.directory);
  try {
    watcher_ = std::thread([this] { FailOnException([this] { Watch(); }, &FailProcess); });
    guard_ = std::thread([this] { FailOnException([this] { Guard(); }, &FailProcess); });
  } catch (const std::system_error& error) {
    Warning("watchdog: the system gives no thread (", error.what(), "); a hang may not be noticed");
  }
}

Watchdog::~Watchdog() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
  }
  wake_.notify_all();
  if (watcher_.joinable()) watcher_.join();
  if (guard_.joinable()) guard_.join();
}

bool Watchdog::Sleep(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !wake_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ended_; });
}

std::string Watchdog::Path(const std::string& name) const {
  return absl::StrCat(options_.directory, "/", options_.run_id, ".", name);
}

void Watchdog::Watch() {
  while (Sleep(poll_seconds_)) {
    looking_since_ = MonotonicSeconds();
    Look();
    looking_since_ = 0;
  }
}

// Watches the watcher: on a file system that hangs it would never come to an end.
void Watchdog::Guard() {
  while (Sleep(1)) {
    const double since = looking_since_;
    if (since == 0 || MonotonicSeconds() - since < kStuckFilesSeconds || !HangsHere()) continue;
    WriteLog(Severity::kError, absl::StrCat("hang: and ", options_.directory, " does not answer, so this is rank ",
                                            options_.rank, " alone: ", log_->Describe(16)));
    ExitNow(ExitCode::kHang);
  }
}

bool Watchdog::HangsHere() const { return log_->SecondsSilent() > options_.seconds; }

bool Watchdog::WaitsAfterStop() const {
  if (!options_.stop_requested || !options_.stop_requested()) return false;
  const OperationSnapshot now = log_->Snapshot();
  return !now.blocking.empty() && now.silent_seconds > options_.stop_wait_seconds;
}

void Watchdog::Look() {
  const std::string alarm_path = Path("alarm");
  const double now = MonotonicSeconds();
  const bool alarmed = HangsHere() || WaitsAfterStop();
  if (raised_ && !alarmed) {
    ::unlink(alarm_path.c_str());
    raised_ = false;
  }
  std::string alarm = ReadFile(alarm_path, kMaxReportBytes).value_or("");
  if (alarm.empty()) {
    if (!alarmed || now < not_before_) return;
    alarm = absl::StrCat("rank ", options_.rank, " alarm ", ++alarms_);
    const std::string draft = absl::StrCat(alarm_path, ".", options_.rank);
    raised_ = WriteWhole(draft, alarm) && Appear(draft, alarm_path);
    ::unlink(draft.c_str());
    if (!raised_) alarm = ReadFile(alarm_path, kMaxReportBytes).value_or(alarm);
  }
  if (alarm != answered_) {
    const std::string path = Path(absl::StrCat("rank-", options_.rank, ".json"));
    if (WriteWhole(path + ".new", ToJson(MakeRankReport(options_.rank, options_.host, alarm, *log_))))
      ::rename((path + ".new").c_str(), path.c_str());
    answered_ = alarm;
    answered_at_ = MonotonicSeconds();
  }
  if (!alarmed) return;
  std::map<int, RankReport> reports = ReadReports();
  const bool complete = static_cast<int>(reports.size()) == options_.world_size;
  if (complete || MonotonicSeconds() - answered_at_ >= kAnswerSeconds + poll_seconds_) Decide(reports);
}

std::map<int, RankReport> Watchdog::ReadReports() const {
  std::map<int, RankReport> reports;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    const absl::StatusOr<std::string> text = ReadFile(Path(absl::StrCat("rank-", rank, ".json")), kMaxReportBytes);
    if (!text.ok()) continue;
    absl::StatusOr<RankReport> report = RankReportFromJson(*text);
    if (report.ok() && report->rank == rank && report->alarm == answered_) reports[rank] = *std::move(report);
  }
  // This rank knows itself, whatever the folder says.
  if (!reports.contains(options_.rank))
    reports[options_.rank] = MakeRankReport(options_.rank, options_.host, answered_, *log_);
  return reports;
}

void Watchdog::Decide(const std::map<int, RankReport>& reports) {
  const bool all_answer = static_cast<int>(reports.size()) == options_.world_size;
  if (HangsHere()) {
    // Ranks fall silent one after another, each when it comes to wait for the first.
    const bool none_moves = std::all_of(reports.begin(), reports.end(), [this](const auto& entry) {
      return entry.second.silent_seconds > options_.seconds / 2;
    });
    if (none_moves) {
      End(ExitCode::kHang,
          absl::StrCat(HangReport(reports, options_.world_size), "no progress for ", HumanSeconds(options_.seconds),
                       " (launch.watchdog_seconds); ending the job. The last checkpoint, if there is one, stands."));
    }
  } else if (!all_answer) {
    End(ExitCode::kPeerLost,
        absl::StrCat("stop: ", Verdict(reports, options_.world_size),
                     "; this step cannot be finished. The last checkpoint, if there is one, stands."));
  }
  ::unlink(Path("alarm").c_str());
  raised_ = false;
  not_before_ = MonotonicSeconds() + std::max(1.0, options_.seconds / 10);
}

void Watchdog::End(ExitCode code, const std::string& report) {
  const int claim = ::open(Path("claim").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  const bool taken = claim < 0 && errno == EEXIST;
  if (!taken) WriteLog(Severity::kError, report);
  if (taken) ::usleep(1'000'000);  // The first exit takes the job down: let the one that prints be done.
  ExitNow(code);
}

}  // namespace trireme
