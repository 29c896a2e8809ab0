// data/corpus/token_file.h
// A file of equally wide little-endian integers after a header: the .bin of Megatron and of llm.c.
#ifndef TRIREME_DATA_CORPUS_TOKEN_FILE_H_
#define TRIREME_DATA_CORPUS_TOKEN_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "launch/base/file.h"
#include "launch/base/status.h"

namespace trireme {

enum class TokenType { kUint8, kUint16, kInt16, kInt32, kUint32, kInt64 };

int TokenBytes(TokenType type);

// Read by pread(2), not mapped: a file that becomes shorter, or a failing disk, is an error here and not a SIGBUS.
// Thread-safe.
class TokenFile {
 public:
  // Tokens must lie in [0, vocab_size); 0: only negative ones are refused. The bytes after the header must be whole
  // tokens.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& path, TokenType type, int64_t header_bytes,
                                                         int64_t vocab_size);
  ~TokenFile();
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  // Copies tokens [begin, begin + count), which must exist, to `out`.
  absl::Status Read(int64_t begin, int64_t count, int64_t* out) const;

  // Digest of the size and of 64 blocks spread over the file: tells files apart without reading them whole.
  absl::StatusOr<Digest> Fingerprint() const;

  int64_t num_tokens() const { return num_tokens_; }
  int64_t file_bytes() const { return header_bytes_ + num_tokens_ * TokenBytes(type_); }
  const std::string& path() const { return path_; }

 private:
  TokenFile(std::string path, int fd, TokenType type, int64_t header_bytes, int64_t vocab_size)
      : path_(std::move(path)), fd_(fd), type_(type), header_bytes_(header_bytes), vocab_size_(vocab_size) {}
  absl::Status ReadBytes(int64_t offset, int64_t size, uint8_t* out) const;
  absl::Status BadToken(int64_t index, int64_t token) const;

  std::string path_;
  int fd_;
  TokenType type_;
  int64_t header_bytes_;
  int64_t vocab_size_;
  int64_t num_tokens_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_TOKEN_FILE_H_
