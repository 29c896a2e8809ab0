#include "data/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "data/manifest.h"
#include "launch/file.h"
#include "launch/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr char kLockName[] = "lock";

absl::Status CheckReplaceable(const std::string& path, bool overwrite) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(path, error))) return absl::OkStatus();
  if (!overwrite) {
    return Error(ExitCode::kConfig, "write ", path,
                 ": it exists already; choose another --output, or replace it with --overwrite");
  }
  if (fs::is_directory(fs::symlink_status(path, error)) &&
      (fs::is_empty(path, error) || fs::exists(fs::path(path) / kManifestName, error))) {
    return absl::OkStatus();
  }
  return Error(ExitCode::kConfig, "write ", path, ": it is not a corpus (no ", kManifestName,
               " in it), so --overwrite does not replace it; remove it yourself or choose another --output");
}

// Takes the lock in `folder`; the kernel gives it back however the process ends.
absl::StatusOr<int> Lock(const std::string& folder) {
  const std::string path = (fs::path(folder) / kLockName).string();
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError("create", path, /*writing=*/true);
  struct stat mine, current;
  const bool locked = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  // Between open and lock the owner may have finished and renamed the folder away.
  if (locked && ::fstat(fd, &mine) == 0 && ::stat(path.c_str(), &current) == 0 && mine.st_ino == current.st_ino)
    return fd;
  ::close(fd);
  return Error(ExitCode::kStorage, "write ", folder,
               ": another process is writing there; wait for it or choose another --output");
}

absl::Status Sweep(const std::string& folder) {
  std::error_code error;
  bool found = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename() == kLockName) continue;
    found = true;
    RETURN_IF_ERROR(RemoveAll(entry.path().string()));
  }
  if (found) Info("removed what an interrupted run left in ", folder);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputFolder>> OutputFolder::Create(std::string final_path, bool overwrite) {
  while (final_path.size() > 1 && final_path.back() == '/') final_path.pop_back();
  RETURN_IF_ERROR(CheckReplaceable(final_path, overwrite));
  std::string path = final_path + ".tmp-prepare";
  RETURN_IF_ERROR(MakeDirectories(path));
  ASSIGN_OR_RETURN(const int lock_fd, Lock(path));
  std::unique_ptr<OutputFolder> folder(new OutputFolder(std::move(final_path), std::move(path), lock_fd));
  RETURN_IF_ERROR(Sweep(folder->path()));
  return folder;
}

OutputFolder::~OutputFolder() {
  if (!published_) {
    const absl::Status status = RemoveAll(path_);
    if (!status.ok()) Warning(std::string(status.message()));
  }
  ::close(lock_fd_);
}

absl::Status OutputFolder::Publish() {
  const std::string lock = (fs::path(path_) / kLockName).string();
  if (::unlink(lock.c_str()) != 0) return SystemError("remove", lock, /*writing=*/true);
  RETURN_IF_ERROR(SyncDirectory(path_));
  const std::string replaced = path_ + "-replaced";
  std::error_code error;
  const bool replaces = fs::exists(final_path_, error);
  if (replaces) {
    RETURN_IF_ERROR(RemoveAll(replaced));
    RETURN_IF_ERROR(RenameDurably(final_path_, replaced));
  }
  RETURN_IF_ERROR(RenameDurably(path_, final_path_));
  published_ = true;
  return RemoveAll(replaced);
}

}  // namespace trireme
