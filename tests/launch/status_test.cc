#include "launch/base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace trireme {
namespace {

TEST(Status, CarriesItsExitCodeThroughAnnotation) {
  for (ExitCode code : {ExitCode::kInternal, ExitCode::kConfig, ExitCode::kData, ExitCode::kCheckpoint,
                        ExitCode::kStorage, ExitCode::kWorldSize, ExitCode::kNonFinite, ExitCode::kHang,
                        ExitCode::kPeerLost, ExitCode::kOutOfMemory, ExitCode::kPreempted}) {
    const absl::Status status = Annotate(Error(code, "step ", 3, " failed"), "train");
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(ExitCodeOf(status), code);
    EXPECT_EQ(status.message(), "train: step 3 failed");
  }
}

TEST(Status, OkStaysOkAndForeignErrorsAreInternal) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
  EXPECT_TRUE(Annotate(absl::OkStatus(), "train").ok());
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("x")), ExitCode::kInternal);
}

TEST(Status, ExitCodesNeverChangeMeaning) {
  EXPECT_EQ(static_cast<int>(ExitCode::kConfig), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::kCheckpoint), 4);
  EXPECT_EQ(static_cast<int>(ExitCode::kHang), 8);
  EXPECT_EQ(static_cast<int>(ExitCode::kPeerLost), 9);
  EXPECT_EQ(static_cast<int>(ExitCode::kPreempted), 75);
}

TEST(SystemError, NamesOperationPathReasonAndRemedy) {
  errno = ENOSPC;
  const absl::Status full = SystemError("write", "/disk/file", /*writing=*/true);
  EXPECT_EQ(ExitCodeOf(full), ExitCode::kStorage);
  EXPECT_EQ(full.message(), "write /disk/file: No space left on device; free space there or choose another directory");
  errno = ENOENT;
  const absl::Status missing = SystemError("open", "/disk/file", /*writing=*/false);
  EXPECT_EQ(ExitCodeOf(missing), ExitCode::kData);
  EXPECT_EQ(missing.message(), "open /disk/file: No such file or directory");
}

absl::StatusOr<std::unique_ptr<int>> Make(bool ok) {
  if (!ok) return Error(ExitCode::kData, "no number");
  return std::make_unique<int>(7);
}

absl::StatusOr<int> Use(bool ok) {
  RETURN_IF_ERROR(absl::OkStatus());
  ASSIGN_OR_RETURN(std::unique_ptr<int> number, Make(ok));
  ASSIGN_OR_RETURN(number, Make(ok));
  return *number;
}

TEST(Status, MacrosPassErrorsAndMoveValues) {
  EXPECT_EQ(Use(true).value(), 7);
  EXPECT_EQ(ExitCodeOf(Use(false).status()), ExitCode::kData);
}

TEST(CheckDeathTest, SaysWhatDoesNotHoldAndExitsAsInternal) {
  TRIREME_CHECK(1 + 1 == 2);
  EXPECT_EXIT(TRIREME_CHECK(1 + 1 == 3, "sum of ", 2, " ones"), testing::ExitedWithCode(1),
              "1 \\+ 1 == 3 does not hold. sum of 2 ones");
}

}  // namespace
}  // namespace trireme
