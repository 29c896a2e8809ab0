#include "launch/base/status.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "launch/base/terminal_text.h"

namespace trireme {
namespace {

constexpr char kExitCodePayload[] = "trireme.exit_code";
constexpr char kToldPayload[] = "trireme.told";

absl::StatusCode CanonicalCode(ExitCode code) {
  switch (code) {
    case ExitCode::kConfig:
    case ExitCode::kWorldSize:
      return absl::StatusCode::kInvalidArgument;
    case ExitCode::kData:
    case ExitCode::kCheckpoint:
      return absl::StatusCode::kDataLoss;
    case ExitCode::kStorage:
    case ExitCode::kOutOfMemory:
      return absl::StatusCode::kResourceExhausted;
    case ExitCode::kPreempted:
    case ExitCode::kInterrupted:
      return absl::StatusCode::kCancelled;
    case ExitCode::kHang:
      return absl::StatusCode::kDeadlineExceeded;
    case ExitCode::kPeerLost:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status MakeError(ExitCode code, const std::string& message) {
  absl::Status status(CanonicalCode(code), message);
  status.SetPayload(kExitCodePayload, absl::Cord(absl::StrCat(static_cast<int>(code))));
  return status;
}

ExitCode ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return ExitCode::kOk;
  const auto payload = status.GetPayload(kExitCodePayload);
  int code = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &code)) return ExitCode::kInternal;
  return static_cast<ExitCode>(code);
}

absl::Status MarkTold(const absl::Status& status) {
  absl::Status marked = status;
  if (!marked.ok()) marked.SetPayload(kToldPayload, absl::Cord());
  return marked;
}

bool IsTold(const absl::Status& status) { return status.GetPayload(kToldPayload).has_value(); }

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  if (status.ok()) return status;
  return MakeError(ExitCodeOf(status), absl::StrCat(prefix, ": ", status.message()));
}

absl::Status SystemError(const std::string& operation, const std::string& path, bool writing) {
  const int error = errno;
  std::string remedy;
  if (error == ENOSPC || error == EDQUOT) remedy = "; free space there or choose another directory";
  if (error == EACCES || error == EROFS) remedy = "; check its permissions or choose another directory";
  return Error(writing ? ExitCode::kStorage : ExitCode::kData, operation, " ", path, ": ", std::strerror(error),
               remedy);
}

void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(
      stderr,
      "trireme: internal error at %s:%d: %s does not hold. %s\nThis is a defect of trireme; please report it.\n", file,
      line, condition, TerminalSafe(message).c_str());
  std::fflush(stderr);
  _exit(static_cast<int>(ExitCode::kInternal));
}

}  // namespace trireme
