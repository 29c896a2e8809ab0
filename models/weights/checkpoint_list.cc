#include "models/weights/checkpoint_list.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

namespace trireme {
namespace {

std::string NameOf(int64_t step) { return absl::StrFormat("step-%08d", step); }

}  // namespace

std::string CheckpointsRoot(const std::string& run_dir) { return run_dir + "/checkpoints"; }

std::string CheckpointFolder(const std::string& run_dir, int64_t step) {
  return absl::StrCat(CheckpointsRoot(run_dir), "/", NameOf(step));
}

std::string RunDirOf(const std::string& checkpoint) {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::absolute(checkpoint, error).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // It ended in a slash.
  const std::string run_dir = folder.parent_path().parent_path().string();
  return CheckpointsRoot(run_dir) == folder.parent_path() ? run_dir : "";
}

int64_t StepOfCheckpoint(const std::string& name) {
  absl::string_view digits = name;
  int64_t step = -1;
  if (!absl::ConsumePrefix(&digits, "step-") || !absl::SimpleAtoi(digits, &step) || step < 0) return -1;
  return NameOf(step) == name ? step : -1;
}

std::vector<std::string> ListCheckpoints(const std::string& run_dir) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(CheckpointsRoot(run_dir), error), end; !error && entry != end;
       entry.increment(error)) {
    const int64_t step = StepOfCheckpoint(entry->path().filename().string());
    if (step >= 0) found.emplace_back(step, entry->path().string());
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> folders;
  for (auto& [step, folder] : found) folders.push_back(std::move(folder));
  return folders;
}

}  // namespace trireme
