#include "data/corpus/output_folder.h"

#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "data/corpus/manifest.h"
#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"

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

absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& folder) {
  ASSIGN_OR_RETURN(std::unique_ptr<FileLock> lock, FileLock::Take((fs::path(folder) / kLockName).string()));
  if (lock != nullptr) return lock;
  return Error(ExitCode::kStorage, "write ", folder,
               ": another process is writing there; wait for it or choose another --output");
}

absl::Status Sweep(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  bool found = false;
  for (const std::string& name : names) {
    if (name == kLockName) continue;
    found = true;
    RETURN_IF_ERROR(RemoveAll(absl::StrCat(folder, "/", name)));
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
  ASSIGN_OR_RETURN(std::unique_ptr<FileLock> lock, Lock(path));
  std::unique_ptr<OutputFolder> folder(new OutputFolder(std::move(final_path), std::move(path), std::move(lock)));
  RETURN_IF_ERROR(Sweep(folder->path()));
  return folder;
}

OutputFolder::~OutputFolder() {
  if (!published_) {
    const absl::Status status = RemoveAll(path_);
    if (!status.ok()) Warning(std::string(status.message()));
  }
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
