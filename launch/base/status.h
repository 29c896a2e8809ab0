// launch/base/status.h
// Errors of the world or the user are absl::Status: operation, values, remedy. Our own bugs are TRIREME_CHECK.
#ifndef TRIREME_LAUNCH_BASE_STATUS_H_
#define TRIREME_LAUNCH_BASE_STATUS_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <string>

#include "launch/base/exit_code.h"

namespace trireme {

// Builds an error that ends the process with `code` if it reaches Main().
// Example: return Error(ExitCode::kData, "data: ", path, " holds 3 documents but its manifest says 5; rebuild it with
// `trireme prepare`");
absl::Status MakeError(ExitCode code, const std::string& message);
template <typename... Args>
absl::Status Error(ExitCode code, const Args&... args) {
  return MakeError(code, absl::StrCat(args...));
}

// The exit code an error carries; kInternal when it carries none.
ExitCode ExitCodeOf(const absl::Status& status);

// Returns the same error, with the same exit code, with `prefix: ` put before its message.
absl::Status Annotate(const absl::Status& status, const std::string& prefix);

// Marks an error whose message has been printed, by one rank for the whole job: who ends the process prints it no more.
absl::Status MarkTold(const absl::Status& status);
bool IsTold(const absl::Status& status);

// Error for a failed system call: names the operation, the path and strerror(errno).
// ENOSPC, EDQUOT, EROFS, EIO and every write become kStorage; reads become kData.
absl::Status SystemError(const std::string& operation, const std::string& path, bool writing);

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace trireme

#define TRIREME_CHECK(condition, ...)                                                                      \
  do {                                                                                                     \
    if (!(condition)) {                                                                                    \
      ::trireme::CheckFailed(__FILE__, __LINE__, #condition, absl::StrCat("" __VA_OPT__(, ) __VA_ARGS__)); \
    }                                                                                                      \
  } while (false)

#define RETURN_IF_ERROR(expression)                  \
  do {                                               \
    absl::Status trireme_status = (expression);      \
    if (!trireme_status.ok()) return trireme_status; \
  } while (false)

#define TRIREME_CONCAT_INNER(a, b) a##b
#define TRIREME_CONCAT(a, b) TRIREME_CONCAT_INNER(a, b)
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_IMPL(TRIREME_CONCAT(status_or_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_IMPL(status_or, target, expression) \
  auto status_or = (expression);                             \
  if (!status_or.ok()) return status_or.status();            \
  target = std::move(status_or).value()

#endif  // TRIREME_LAUNCH_BASE_STATUS_H_
