#include "launch/base/exception.h"

#include <gtest/gtest.h>

#include <functional>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace trireme {
namespace {

absl::Status Thrown(const std::function<void()>& body) {
  FirstException exception;
  std::thread([&] {
    try {
      body();
    } catch (...) {
      exception.Keep();
    }
  }).join();
  return exception.status("do something");
}

TEST(Exception, OutOfMemoryInAThreadIsAnErrorWithItsExitCode) {
  const absl::Status status = Thrown([] { throw std::bad_alloc(); });
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
  EXPECT_EQ(status.message(), "out of host memory; do something");
}

TEST(Exception, SizesThatNoMemoryHoldsAreOutOfMemoryToo) {
  const absl::Status status = Thrown([] { std::vector<int>().reserve(SIZE_MAX / 2); });
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory) << status;
}

TEST(Exception, LibrariesThatSayOutOfMemoryInWords) {
  const absl::Status status = Thrown([] { throw std::runtime_error("CUDA out of memory. Tried 2 GiB\nstack"); });
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
  EXPECT_EQ(status.message(), "CUDA out of memory. Tried 2 GiB; do something");
}

TEST(Exception, NoMoreThreadsIsTheSystemsLimit) {
  const auto code = std::make_error_code(std::errc::resource_unavailable_try_again);
  EXPECT_EQ(ExitCodeOf(Thrown([&] { throw std::system_error(code); })), ExitCode::kOutOfMemory);
}

TEST(Exception, AnythingElseIsOurs) {
  EXPECT_EQ(ExitCodeOf(Thrown([] { throw std::logic_error("x"); })), ExitCode::kInternal);
  EXPECT_EQ(ExitCodeOf(Thrown([] { throw 5; })), ExitCode::kInternal);
  EXPECT_TRUE(Thrown([] {}).ok());
}

}  // namespace
}  // namespace trireme
