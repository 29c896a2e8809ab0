#include "launch/base/folder.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

namespace trireme {

namespace fs = std::filesystem;

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) return Error(ExitCode::kStorage, "list folder ", folder, ": ", error.message());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace trireme
