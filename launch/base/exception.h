// launch/base/exception.h
// What libraries throw, as errors of ours. A thread has no caller that could catch: it keeps what was thrown for the
// one who waits for it, or ends the process as an error does.
#ifndef TRIREME_LAUNCH_BASE_EXCEPTION_H_
#define TRIREME_LAUNCH_BASE_EXCEPTION_H_

#include <absl/strings/string_view.h>

#include <exception>
#include <mutex>
#include <string>

#include "launch/base/status.h"

namespace trireme {

// The error that `exception` stands for: the memory is not there, or nobody has so much (kOutOfMemory), the system
// gives no more threads (kOutOfMemory), anything else is a defect of ours (kInternal). `remedy` is what to do about
// memory.
absl::Status StatusOfException(const std::exception_ptr& exception, absl::string_view remedy);

// The first exception of several threads. Keeping one needs no memory.
class FirstException {
 public:
  // To be called in a catch block.
  void Keep() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    if (first_ == nullptr) first_ = std::current_exception();
  }
  // Once the threads are done or cannot throw any more. OK when nothing was thrown.
  absl::Status status(absl::string_view remedy) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return first_ == nullptr ? absl::OkStatus() : StatusOfException(first_, remedy);
  }

 private:
  mutable std::mutex mutex_;
  std::exception_ptr first_;
};

// For the body of a thread that nobody waits for: what `body` throws ends the process with its exit code and message.
template <typename Body>
void FailOnException(const Body& body, void (*fail)(const absl::Status&)) {
  try {
    body();
  } catch (...) {
    fail(StatusOfException(std::current_exception(), ""));
  }
}

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_EXCEPTION_H_
