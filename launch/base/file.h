// launch/base/file.h
// Files written whole or not at all, and files read without trust.
#ifndef TRIREME_LAUNCH_BASE_FILE_H_
#define TRIREME_LAUNCH_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// 128 bits of XXH3, as 32 hexadecimal digits.
using Digest = std::string;

// Reads a whole file; refuses one larger than `max_bytes` before allocating.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes = uint64_t{1} << 30);

// Whether there is something at `path`, links followed; false where that cannot be told.
bool Exists(const std::string& path);

// Writes to `path`.tmp, fsyncs, renames over `path`, fsyncs the directory: after a crash the old or the new file
// stands, whole. Of a link the file it leads to is replaced; into a device or pipe is written as into any.
absl::Status WriteFileAtomically(const std::string& path, const std::string& contents);

// mkdir -p.
absl::Status MakeDirectories(const std::string& path);

// Removes a file or a directory with all in it; fine if it does not exist.
absl::Status RemoveAll(const std::string& path);

// rename(2) followed by fsync of the parent of `to`.
absl::Status RenameDurably(const std::string& from, const std::string& to);
absl::Status SyncDirectory(const std::string& path);

// The digest of a file's bytes. `progress`, if set, is told the bytes done so far.
absl::StatusOr<Digest> HashFile(const std::string& path, const std::function<void(uint64_t)>& progress = nullptr);
Digest HashBytes(const void* data, size_t size);
// The digest of a file's size, its first MiB and a thousand places of 4 KiB throughout. It tells one large file from
// another without reading either whole.
absl::StatusOr<Digest> HashSamples(const std::string& path);

// A file being written front to back, hashed on the way. Unless Close() returned OK the content is not durable.
class FileWriter {
 public:
  static absl::StatusOr<std::unique_ptr<FileWriter>> Create(const std::string& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  absl::Status Append(const void* data, size_t size);
  absl::Status Close();  // Flushes and fsyncs.
  uint64_t size() const { return size_; }
  Digest digest() const;  // Of all bytes appended so far.

 private:
  FileWriter(std::string path, int fd);
  absl::Status Flush();

  struct HashState;
  std::string path_;
  int fd_;
  uint64_t size_ = 0;
  std::string buffer_;
  std::unique_ptr<HashState> hash_;
};

// Held until it is destroyed or the process ends, however it ends.
class FileLock {
 public:
  // Takes `path`, an empty file made where missing. Null: another process has it. Without locks: warns, holds nothing.
  static absl::StatusOr<std::unique_ptr<FileLock>> Take(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

// A whole file mapped read-only. data() is null for an empty file.
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const uint8_t* data, uint64_t size) : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const uint8_t* data_;
  uint64_t size_;
};

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_FILE_H_
