// data/corpus/output_folder.h
// A folder that appears under its name only when it is whole.
#ifndef TRIREME_DATA_CORPUS_OUTPUT_FOLDER_H_
#define TRIREME_DATA_CORPUS_OUTPUT_FOLDER_H_

#include <memory>
#include <string>

#include "launch/base/file.h"
#include "launch/base/status.h"

namespace trireme {

// Files go to `path()`, which is FINAL.tmp-prepare, and Publish() renames it. What a killed process left there is
// removed by the next Create(); a second process that writes the same folder at the same time is refused. Unless
// published, the files go when this goes.
class OutputFolder {
 public:
  // Fails when `final_path` exists, unless `overwrite` is set and it is empty or holds a manifest: then Publish()
  // replaces it.
  static absl::StatusOr<std::unique_ptr<OutputFolder>> Create(std::string final_path, bool overwrite);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::string& path() const { return path_; }
  const std::string& final_path() const { return final_path_; }
  absl::Status Publish();  // The files must be durable already.

 private:
  OutputFolder(std::string final_path, std::string path, std::unique_ptr<FileLock> lock)
      : final_path_(std::move(final_path)), path_(std::move(path)), lock_(std::move(lock)) {}

  std::string final_path_;
  std::string path_;
  std::unique_ptr<FileLock> lock_;
  bool published_ = false;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_OUTPUT_FOLDER_H_
