// data/text/line_reader.h
// A file line by line, decompressed on the way.
#ifndef TRIREME_DATA_TEXT_LINE_READER_H_
#define TRIREME_DATA_TEXT_LINE_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "data/text/byte_source.h"
#include "launch/base/status.h"

namespace trireme {

// Not thread-safe. Errors (kData) name the file, and the line where there is one.
class LineReader {
 public:
  // Opens what ByteSource::Open() opens. A line of more than `max_line_bytes` is an error.
  static absl::StatusOr<LineReader> Open(const std::string& path, size_t max_line_bytes);

  // Replaces `*line` by the next, without its line break (\n or \r\n); false at the end. The last needs no line break.
  absl::StatusOr<bool> Next(std::string* line);

  int64_t line() const { return line_; }  // number of the line last given, from 1
  const std::string& path() const { return path_; }
  int64_t bytes_read() const { return source_->bytes_read(); }  // of the file as it is on disk

 private:
  LineReader(std::string path, size_t max_line_bytes, std::unique_ptr<ByteSource> source)
      : path_(std::move(path)), max_line_bytes_(max_line_bytes), source_(std::move(source)) {}

  std::string path_;
  size_t max_line_bytes_;
  std::unique_ptr<ByteSource> source_;
  int64_t line_ = 0;
  std::string buffer_;  // what is read; before begin_ it is used up
  size_t begin_ = 0;
  bool ended_ = false;
};

}  // namespace trireme

#endif  // TRIREME_DATA_TEXT_LINE_READER_H_
