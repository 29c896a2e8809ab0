#include "data/corpus/token_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

namespace trireme {
namespace {

constexpr int64_t kBlockBytes = 1 << 16;

// Converts `count` tokens at `bytes` (unaligned) and returns the index of the first one outside [0, limit), or `count`.
template <typename T>
int64_t Convert(const uint8_t* bytes, int64_t count, int64_t limit, int64_t* out) {
  int64_t bad = count;
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    out[i] = static_cast<int64_t>(value);
    if ((out[i] < 0 || out[i] >= limit) && bad == count) bad = i;
  }
  return bad;
}

int64_t Convert(TokenType type, const uint8_t* bytes, int64_t count, int64_t limit, int64_t* out) {
  switch (type) {
    case TokenType::kUint8:
      return Convert<uint8_t>(bytes, count, limit, out);
    case TokenType::kUint16:
      return Convert<uint16_t>(bytes, count, limit, out);
    case TokenType::kInt16:
      return Convert<int16_t>(bytes, count, limit, out);
    case TokenType::kInt32:
      return Convert<int32_t>(bytes, count, limit, out);
    case TokenType::kUint32:
      return Convert<uint32_t>(bytes, count, limit, out);
    case TokenType::kInt64:
      return Convert<int64_t>(bytes, count, limit, out);
  }
  TRIREME_CHECK(false);
}

}  // namespace

int TokenBytes(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
      return 1;
    case TokenType::kUint16:
    case TokenType::kInt16:
      return 2;
    case TokenType::kInt32:
    case TokenType::kUint32:
      return 4;
    case TokenType::kInt64:
      return 8;
  }
  TRIREME_CHECK(false);
}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path, TokenType type,
                                                           int64_t header_bytes, int64_t vocab_size) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const bool too_many = errno == EMFILE;
    absl::Status status = SystemError("open", path, /*writing=*/false);
    if (!too_many) return status;
    return Error(ExitCode::kData, status.message(), "; raise the limit with `ulimit -n`, or use fewer, larger shards");
  }
  std::unique_ptr<TokenFile> file(new TokenFile(path, fd, type, header_bytes, vocab_size));
  struct stat info;
  if (::fstat(fd, &info) != 0) return SystemError("stat", path, /*writing=*/false);
  if (!S_ISREG(info.st_mode)) return Error(ExitCode::kData, "open ", path, ": not a regular file");
  const int64_t size = info.st_size;
  if (size < header_bytes || (size - header_bytes) % TokenBytes(type) != 0) {
    return Error(ExitCode::kData, "open ", path, ": ", size, " bytes are not ", header_bytes,
                 " bytes of header and whole ", TokenBytes(type),
                 "-byte tokens; the file is truncated or not a token file");
  }
  file->num_tokens_ = (size - header_bytes) / TokenBytes(type);
  return file;
}

TokenFile::~TokenFile() { ::close(fd_); }

absl::Status TokenFile::ReadBytes(int64_t offset, int64_t size, uint8_t* out) const {
  while (size > 0) {
    const ssize_t got = ::pread(fd_, out, size, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError("read", path_, /*writing=*/false);
    if (got == 0) {
      return Error(ExitCode::kData, "read ", path_, ": it ends at byte ", offset, " but had ", file_bytes(),
                   " bytes when it was opened; do not change a corpus in use");
    }
    offset += got;
    size -= got;
    out += got;
  }
  return absl::OkStatus();
}

absl::Status TokenFile::BadToken(int64_t index, int64_t token) const {
  const std::string range = vocab_size_ > 0 ? absl::StrCat("not below the vocabulary of ", vocab_size_) : "negative";
  return Error(ExitCode::kData, "read ", path_, ": token ", token, " at byte ",
               header_bytes_ + index * TokenBytes(type_), " (token number ", index, ") is ", range,
               "; the file is damaged or was made with another tokenizer, rebuild it with `trireme prepare`");
}

absl::Status TokenFile::Read(int64_t begin, int64_t count, int64_t* out) const {
  TRIREME_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens_ - count, path_, ": tokens [", begin, ", +", count,
                ") of ", num_tokens_);
  const int64_t limit = vocab_size_ > 0 ? vocab_size_ : std::numeric_limits<int64_t>::max();
  const int64_t width = TokenBytes(type_);
  uint8_t block[kBlockBytes];
  while (count > 0) {
    const int64_t n = std::min(count, kBlockBytes / width);
    RETURN_IF_ERROR(ReadBytes(header_bytes_ + begin * width, n * width, block));
    const int64_t bad = Convert(type_, block, n, limit, out);
    if (bad < n) return BadToken(begin + bad, out[bad]);
    begin += n;
    count -= n;
    out += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<Digest> TokenFile::Fingerprint() const {
  constexpr int64_t kBlocks = 64;
  const int64_t size = file_bytes();
  std::string digests = absl::StrCat(size);
  uint8_t block[kBlockBytes];
  for (int64_t i = 0; i < kBlocks; ++i) {
    const int64_t length = std::min(size, kBlockBytes);
    // The first block at the start, the last at the end.
    const int64_t offset = static_cast<int64_t>(static_cast<__int128>(size - length) * i / (kBlocks - 1));
    RETURN_IF_ERROR(ReadBytes(offset, length, block));
    absl::StrAppend(&digests, " ", HashBytes(block, length));
    if (size <= kBlockBytes) break;
  }
  return HashBytes(digests.data(), digests.size());
}

}  // namespace trireme
