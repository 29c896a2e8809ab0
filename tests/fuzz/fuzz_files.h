// tests/fuzz/fuzz_files.h
// Inputs for readers that take paths.
#ifndef TRIREME_TESTS_FUZZ_FUZZ_FILES_H_
#define TRIREME_TESTS_FUZZ_FUZZ_FILES_H_

#include <absl/strings/string_view.h>

#include <string>

namespace trireme {

// A file in memory, reached by a path as long as the object lives. Write() replaces its contents.
class MemoryFile {
 public:
  MemoryFile();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }
  void Write(absl::string_view contents);

 private:
  int fd_;
  std::string path_;
};

// A folder for files that must have certain names; removed with the object.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  void Link(const MemoryFile& file, const std::string& name) const;  // `name` in the folder then leads to `file`

 private:
  std::string path_;
};

// The contents of a file that a seed was written to.
std::string Contents(const std::string& path);

// `value` in `bytes` bytes, little-endian.
std::string LittleEndian(uint64_t value, int bytes);

}  // namespace trireme

#endif  // TRIREME_TESTS_FUZZ_FUZZ_FILES_H_
