#include "launch/base/exception.h"

#include <new>
#include <stdexcept>
#include <system_error>

namespace trireme {
namespace {

absl::Status OutOfMemory(absl::string_view what, absl::string_view remedy) {
  return Error(ExitCode::kOutOfMemory, what, remedy.empty() ? "" : "; ", remedy);
}

}  // namespace

absl::Status StatusOfException(const std::exception_ptr& exception, absl::string_view remedy) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::bad_alloc&) {
    return OutOfMemory("out of host memory", remedy);
  } catch (const std::length_error&) {
    return OutOfMemory("out of host memory: something has a size that no memory holds", remedy);
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::resource_unavailable_try_again)
      return OutOfMemory("the system gives no more threads", "raise its limit (ulimit -u) or use fewer threads");
    return Error(ExitCode::kInternal, "unexpected: ", error.what());
  } catch (const std::exception& error) {
    // libtorch reports its failures as exceptions; out of memory is the user's to mend, anything else ours.
    const std::string what = error.what();
    for (const char* words : {"out of memory", "out of host memory", "can't allocate memory"}) {
      if (what.find(words) != std::string::npos) return OutOfMemory(what.substr(0, what.find('\n')), remedy);
    }
    return Error(ExitCode::kInternal, "unexpected: ", what);
  } catch (...) {
    return Error(ExitCode::kInternal, "unexpected: something that is no std::exception was thrown");
  }
}

}  // namespace trireme
