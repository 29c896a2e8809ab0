#include "data/text/byte_source.h"

#include <absl/strings/match.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <vector>

namespace trireme {
namespace {

constexpr size_t kInputBytes = 1 << 18;

// The file itself, buffered: first bytes can be looked at before they are consumed.
class RawInput {
 public:
  RawInput(std::string path, int fd, bool owned)
      : path_(std::move(path)), fd_(fd), owned_(owned), buffer_(kInputBytes) {}
  ~RawInput() {
    if (owned_) ::close(fd_);
  }
  RawInput(const RawInput&) = delete;
  RawInput& operator=(const RawInput&) = delete;

  // Ensures at least `count` unread bytes unless the file ends first. count <= kInputBytes.
  absl::Status Fill(size_t count) {
    if (end_ - begin_ >= count) return absl::OkStatus();
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    while (end_ < count) {
      const ssize_t got = ::read(fd_, buffer_.data() + end_, buffer_.size() - end_);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return SystemError("read", path_, /*writing=*/false);
      if (got == 0) break;
      end_ += got;
    }
    return absl::OkStatus();
  }
  void Consume(size_t count) {
    begin_ += count;
    consumed_ += static_cast<int64_t>(count);
  }
  const uint8_t* data() const { return buffer_.data() + begin_; }
  size_t available() const { return end_ - begin_; }
  int64_t consumed() const { return consumed_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_;
  bool owned_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  int64_t consumed_ = 0;
};

bool IsGzip(const RawInput& input) {
  return input.available() >= 2 && input.data()[0] == 0x1f && input.data()[1] == 0x8b;
}

bool IsZstd(const RawInput& input) {
  static constexpr uint8_t kMagic[] = {0x28, 0xb5, 0x2f, 0xfd};
  return input.available() >= sizeof(kMagic) && std::memcmp(input.data(), kMagic, sizeof(kMagic)) == 0;
}

absl::Status Damaged(const RawInput& input, absl::string_view what) {
  return Error(ExitCode::kData, "read ", input.path(), ": ", what, " (after ", input.consumed(),
               " bytes of the file); obtain the file again");
}

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(std::unique_ptr<RawInput> input) : input_(std::move(input)) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    RETURN_IF_ERROR(input_->Fill(1));
    const size_t count = std::min(size, input_->available());
    std::memcpy(out, input_->data(), count);
    input_->Consume(count);
    return count;
  }
  int64_t bytes_read() const override { return input_->consumed(); }

 private:
  std::unique_ptr<RawInput> input_;
};

class GzipSource : public ByteSource {
 public:
  explicit GzipSource(std::unique_ptr<RawInput> input) : input_(std::move(input)) {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&stream_, kGzipOnly + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~GzipSource() override { inflateEnd(&stream_); }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    size = std::min(size, kInputBytes);  // zlib counts in 32 bits.
    while (!at_end_) {
      RETURN_IF_ERROR(input_->Fill(1));
      if (input_->available() == 0) return Damaged(*input_, "the gzip stream ends too early");
      stream_.next_in = const_cast<Bytef*>(input_->data());
      stream_.avail_in = input_->available();
      stream_.next_out = reinterpret_cast<Bytef*>(out);
      stream_.avail_out = size;
      const int result = inflate(&stream_, Z_NO_FLUSH);
      input_->Consume(input_->available() - stream_.avail_in);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        return Damaged(*input_, absl::StrCat("damaged gzip data: ", stream_.msg != nullptr ? stream_.msg : "unknown"));
      }
      if (result == Z_STREAM_END) RETURN_IF_ERROR(NextMember());
      if (stream_.avail_out < size) return size - stream_.avail_out;
    }
    return 0;
  }
  int64_t bytes_read() const override { return input_->consumed(); }

 private:
  // After a member: another one, or the end of the file, possibly padded with zeros as gzip(1) tolerates.
  absl::Status NextMember() {
    RETURN_IF_ERROR(input_->Fill(2));
    if (IsGzip(*input_)) {
      if (inflateReset(&stream_) != Z_OK) return Damaged(*input_, "a member of the gzip stream cannot be read");
      return absl::OkStatus();
    }
    at_end_ = true;
    while (input_->available() > 0) {
      for (size_t i = 0; i < input_->available(); ++i) {
        if (input_->data()[i] != 0) return Damaged(*input_, "the gzip stream is followed by other data");
      }
      input_->Consume(input_->available());
      RETURN_IF_ERROR(input_->Fill(1));
    }
    return absl::OkStatus();
  }

  std::unique_ptr<RawInput> input_;
  z_stream stream_ = {};
  bool at_end_ = false;
};

class ZstdSource : public ByteSource {
 public:
  explicit ZstdSource(std::unique_ptr<RawInput> input) : input_(std::move(input)), stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) throw std::bad_alloc();
  }
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    ZSTD_outBuffer output = {out, size, 0};
    while (output.pos == 0) {
      RETURN_IF_ERROR(input_->Fill(1));
      if (input_->available() == 0 && frame_complete_) return 0;
      ZSTD_inBuffer in = {input_->data(), input_->available(), 0};
      const size_t result = ZSTD_decompressStream(stream_, &output, &in);
      input_->Consume(in.pos);
      if (ZSTD_isError(result)) return Damaged(*input_, absl::StrCat("damaged zstd data: ", ZSTD_getErrorName(result)));
      frame_complete_ = result == 0;
      // Nothing went in and nothing came out: all input is used up inside a frame.
      if (in.size == 0 && output.pos == 0 && !frame_complete_)
        return Damaged(*input_, "the zstd stream ends too early");
    }
    return output.pos;
  }
  int64_t bytes_read() const override { return input_->consumed(); }

 private:
  std::unique_ptr<RawInput> input_;
  ZSTD_DStream* stream_;
  bool frame_complete_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> ByteSource::Open(const std::string& path) {
  std::unique_ptr<RawInput> input;
  if (path == "-") {
    input = std::make_unique<RawInput>("standard input", STDIN_FILENO, /*owned=*/false);
  } else {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return SystemError("open", path, /*writing=*/false);
    input = std::make_unique<RawInput>(path, fd, /*owned=*/true);
    struct stat info;
    if (::fstat(fd, &info) != 0) return SystemError("stat", path, /*writing=*/false);
    if (S_ISDIR(info.st_mode)) return Error(ExitCode::kData, "read ", path, ": it is a directory");
  }
  RETURN_IF_ERROR(input->Fill(4));
  if (IsGzip(*input)) return std::make_unique<GzipSource>(std::move(input));
  if (IsZstd(*input)) return std::make_unique<ZstdSource>(std::move(input));
  if (absl::EndsWith(path, ".gz"))
    return Error(ExitCode::kData, "read ", path, ": it is named .gz but is not gzip data");
  if (absl::EndsWith(path, ".zst"))
    return Error(ExitCode::kData, "read ", path, ": it is named .zst but is not zstd data");
  return std::make_unique<PlainSource>(std::move(input));
}

}  // namespace trireme
