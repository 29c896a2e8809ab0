// tests/parallel/shared_folder.h
#ifndef TRIREME_TESTS_PARALLEL_SHARED_FOLDER_H_
#define TRIREME_TESTS_PARALLEL_SHARED_FOLDER_H_

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "launch/base/status.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// A folder that all ranks see; rank 0 makes and removes it.
class SharedFolder {
 public:
  explicit SharedFolder(ProcessGroup& world) : world_(world) {
    std::string path;
    if (world.rank() == 0) {
      path = (std::filesystem::temp_directory_path() / "trireme-test-XXXXXX").string();
      TRIREME_CHECK(mkdtemp(path.data()) != nullptr, path);
    }
    path_ = BroadcastBytes(world, path);
  }
  ~SharedFolder() {
    world_.Barrier();
    if (world_.rank() == 0) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }

 private:
  ProcessGroup& world_;
  std::string path_;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_SHARED_FOLDER_H_
