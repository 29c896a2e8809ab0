#include "launch/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "launch/base/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSyncBytes = size_t{32} << 20;

Digest Hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  static constexpr char kDigits[] = "0123456789abcdef";
  Digest text;
  for (unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

absl::Status WriteFully(int fd, const char* data, size_t size, const std::string& path) {
  while (size > 0) {
    const ssize_t written = ::write(fd, data, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      return SystemError("write", path, /*writing=*/true);
    }
    data += written;
    size -= written;
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// Into a device or pipe.
absl::Status WriteThrough(const std::string& path, const std::string& contents) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path, /*writing=*/true);
  absl::Status status = WriteFully(fd, contents.data(), contents.size(), path);
  if (::close(fd) != 0 && status.ok()) status = SystemError("close", path, /*writing=*/true);
  return status;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("open", path, /*writing=*/false);
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return Error(ExitCode::kData, "read ", path, S_ISDIR(info.st_mode) ? ": it is a folder" : ": not a regular file");
  }
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    ::close(fd);
    return Error(ExitCode::kData, "read ", path, ": ", info.st_size, " bytes, more than the ", max_bytes,
                 " such a file may have");
  }
  std::string contents(info.st_size, '\0');
  size_t done = 0;
  while (done < contents.size()) {
    const ssize_t got = ::read(fd, contents.data() + done, contents.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      absl::Status status = got < 0 ? SystemError("read", path, /*writing=*/false)
                                    : Error(ExitCode::kData, "read ", path, ": it became shorter while being read");
      ::close(fd);
      return status;
    }
    done += got;
  }
  ::close(fd);
  return contents;
}

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

absl::Status WriteFileAtomically(const std::string& given, const std::string& contents) {
  struct stat info;
  const bool there = ::stat(given.c_str(), &info) == 0;
  if (there && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) return WriteThrough(given, contents);
  // Where the path is a link, the file that it leads to is replaced.
  std::error_code error;
  const fs::path target = there ? fs::canonical(given, error) : fs::path();
  const std::string path = there && !error ? target.string() : given;
  const std::string temporary = absl::StrCat(path, ".tmp-", ::getpid());
  auto writer = FileWriter::Create(temporary);
  if (!writer.ok()) return writer.status();
  absl::Status status = (*writer)->Append(contents.data(), contents.size());
  if (status.ok()) status = (*writer)->Close();
  if (status.ok()) status = RenameDurably(temporary, path);
  if (!status.ok()) ::unlink(temporary.c_str());
  return status;
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    errno = error.value();
    return SystemError("create directory", path, /*writing=*/true);
  }
  return absl::OkStatus();
}

absl::Status RemoveAll(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    errno = error.value();
    return SystemError("remove", path, /*writing=*/true);
  }
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError("open directory", path, /*writing=*/true);
  const int result = ::fsync(fd);
  absl::Status status = result == 0 ? absl::OkStatus() : SystemError("fsync directory", path, /*writing=*/true);
  ::close(fd);
  return status;
}

absl::Status RenameDurably(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    return SystemError(absl::StrCat("rename ", from, " to"), to, /*writing=*/true);
  return SyncDirectory(ParentOf(to));
}

absl::StatusOr<Digest> HashFile(const std::string& path, const std::function<void(uint64_t)>& progress) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("open", path, /*writing=*/false);
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::string buffer(4 << 20, '\0');
  uint64_t done = 0;
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      absl::Status status = SystemError("read", path, /*writing=*/false);
      ::close(fd);
      return status;
    }
    if (got == 0) break;
    XXH3_128bits_update(state.get(), buffer.data(), got);
    done += got;
    if (progress) progress(done);
  }
  ::close(fd);
  return Hex(XXH3_128bits_digest(state.get()));
}

absl::StatusOr<Digest> HashSamples(const std::string& path) {
  constexpr uint64_t kFirst = 1 << 20, kPlaces = 1000, kPlace = 4096;
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  const uint64_t size = file->size();
  if (size <= kFirst + kPlaces * kPlace) return HashBytes(file->data(), size);
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  XXH3_128bits_update(state.get(), &size, sizeof(size));
  XXH3_128bits_update(state.get(), file->data(), kFirst);
  for (uint64_t i = 0; i < kPlaces; ++i) {
    const uint64_t place = kFirst + (size - kFirst - kPlace) / (kPlaces - 1) * i;
    XXH3_128bits_update(state.get(), file->data() + place, kPlace);
  }
  return Hex(XXH3_128bits_digest(state.get()));
}

Digest HashBytes(const void* data, size_t size) { return Hex(XXH3_128bits(data, size)); }

struct FileWriter::HashState {
  XXH3_state_t* state = XXH3_createState();
  HashState() { XXH3_128bits_reset(state); }
  ~HashState() { XXH3_freeState(state); }
};

FileWriter::FileWriter(std::string path, int fd)
    : path_(std::move(path)), fd_(fd), hash_(std::make_unique<HashState>()) {
  buffer_.reserve(1 << 20);
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<std::unique_ptr<FileWriter>> FileWriter::Create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError("create", path, /*writing=*/true);
  return std::unique_ptr<FileWriter>(new FileWriter(path, fd));
}

absl::Status FileWriter::Append(const void* data, size_t size) {
  // What is written goes to the disk on the way: callers show that they are alive between pieces, but the fsync at the
  // end of a large file could be silent for minutes.
  while (size > kSyncBytes) {
    RETURN_IF_ERROR(Append(data, kSyncBytes));
    data = static_cast<const char*>(data) + kSyncBytes;
    size -= kSyncBytes;
  }
  if ((size_ + size) / kSyncBytes > size_ / kSyncBytes) {
    RETURN_IF_ERROR(Flush());
    if (::fdatasync(fd_) != 0) return SystemError("fsync", path_, /*writing=*/true);
  }
  XXH3_128bits_update(hash_->state, data, size);
  size_ += size;
  if (buffer_.size() + size <= buffer_.capacity()) {
    buffer_.append(static_cast<const char*>(data), size);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Flush());
  if (size < buffer_.capacity()) {
    buffer_.append(static_cast<const char*>(data), size);
    return absl::OkStatus();
  }
  return WriteFully(fd_, static_cast<const char*>(data), size, path_);
}

absl::Status FileWriter::Flush() {
  RETURN_IF_ERROR(WriteFully(fd_, buffer_.data(), buffer_.size(), path_));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status FileWriter::Close() {
  RETURN_IF_ERROR(Flush());
  if (::fsync(fd_) != 0) return SystemError("fsync", path_, /*writing=*/true);
  const int result = ::close(fd_);
  fd_ = -1;
  if (result != 0) return SystemError("close", path_, /*writing=*/true);
  return absl::OkStatus();
}

Digest FileWriter::digest() const { return Hex(XXH3_128bits_digest(hash_->state)); }

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Take(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError("create", path, /*writing=*/true);
  struct stat mine, current;
  const bool locked = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (!locked && (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK)) {
    Warning("lock ", path, ": this file system has no locks (", std::strerror(errno),
            "); take care that no other job writes there");
    return std::unique_ptr<FileLock>(new FileLock(fd));
  }
  if (!locked && errno != EWOULDBLOCK) {
    const absl::Status status = SystemError("lock", path, /*writing=*/true);
    ::close(fd);
    return status;
  }
  // Between open and lock the owner may have finished and moved the file away.
  if (locked && ::fstat(fd, &mine) == 0 && ::stat(path.c_str(), &current) == 0 && mine.st_ino == current.st_ino)
    return std::unique_ptr<FileLock>(new FileLock(fd));
  ::close(fd);
  return std::unique_ptr<FileLock>();
}

FileLock::~FileLock() { ::close(fd_); }

absl::StatusOr<std::shared_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("open", path, /*writing=*/false);
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return Error(ExitCode::kData, "open ", path, S_ISDIR(info.st_mode) ? ": it is a folder" : ": not a regular file");
  }
  const uint8_t* data = nullptr;
  if (info.st_size > 0) {
    void* address = ::mmap(nullptr, info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
      absl::Status status = SystemError("map", path, /*writing=*/false);
      ::close(fd);
      return status;
    }
    data = static_cast<const uint8_t*>(address);
  }
  ::close(fd);
  return std::shared_ptr<MappedFile>(new MappedFile(path, data, info.st_size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace trireme
