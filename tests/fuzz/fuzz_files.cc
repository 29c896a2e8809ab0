#include "tests/fuzz/fuzz_files.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "launch/base/file.h"

namespace trireme {

MemoryFile::MemoryFile()
    : fd_(memfd_create("fuzz", MFD_CLOEXEC)), path_(absl::StrCat("/proc/", getpid(), "/fd/", fd_)) {
  TRIREME_CHECK(fd_ >= 0, "memfd_create");
}

MemoryFile::~MemoryFile() { close(fd_); }

void MemoryFile::Write(absl::string_view contents) {
  TRIREME_CHECK(ftruncate(fd_, 0) == 0 &&
                pwrite(fd_, contents.data(), contents.size(), 0) == static_cast<ssize_t>(contents.size()));
}

ScratchFolder::ScratchFolder() {
  path_ = (std::filesystem::temp_directory_path() / "trireme_fuzz_XXXXXX").string();
  TRIREME_CHECK(mkdtemp(path_.data()) != nullptr, path_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void ScratchFolder::Link(const MemoryFile& file, const std::string& name) const {
  std::filesystem::create_symlink(file.path(), *this / name);
}

std::string Contents(const std::string& path) {
  absl::StatusOr<std::string> contents = ReadFile(path);
  TRIREME_CHECK(contents.ok(), contents.status().message());
  return *std::move(contents);
}

std::string LittleEndian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

}  // namespace trireme
