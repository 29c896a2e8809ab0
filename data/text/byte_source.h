// data/text/byte_source.h
// The bytes of one input file or of standard input, decompressed on the way.
#ifndef TRIREME_DATA_TEXT_BYTE_SOURCE_H_
#define TRIREME_DATA_TEXT_BYTE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "launch/base/status.h"

namespace trireme {

class ByteSource {
 public:
  // `path` "-" is standard input. gzip (any number of members) and zstd (any number of frames) are recognized by their
  // first bytes; a file named .gz or .zst that does not begin so is an error.
  static absl::StatusOr<std::unique_ptr<ByteSource>> Open(const std::string& path);
  virtual ~ByteSource() = default;

  // Fills up to `size` > 0 bytes; 0 only at the end. Damaged or truncated compressed data is an error that names the
  // file.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size) = 0;
  virtual int64_t bytes_read() const = 0;  // Bytes of the file consumed so far, before decompression.
};

}  // namespace trireme

#endif  // TRIREME_DATA_TEXT_BYTE_SOURCE_H_
