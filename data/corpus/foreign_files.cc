#include "data/corpus/foreign_files.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "data/corpus/manifest.h"

namespace trireme {

absl::StatusOr<ForeignFiles> FindForeignFiles(const std::string& folder) {
  namespace fs = std::filesystem;
  ForeignFiles files = {folder, {}, {}};
  std::error_code error;
  for (fs::directory_iterator it(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path().extension() != ".idx") continue;
    std::string name = it->path().stem().string();
    (absl::StartsWith(name, kValidationSplit) ? files.validation : files.train).push_back(std::move(name));
  }
  if (error) return Error(ExitCode::kData, "list folder ", folder, ": ", error.message());
  if (files.train.empty()) {
    return Error(ExitCode::kData, "open corpus ", folder, ": it holds neither ", kManifestName,
                 " nor Megatron .idx files to train on; make a corpus with `trireme prepare`");
  }
  std::sort(files.train.begin(), files.train.end());
  std::sort(files.validation.begin(), files.validation.end());
  return files;
}

}  // namespace trireme
