// data/text/text_reader.h
// Documents from plain text and JSON lines, one at a time: the input of `prepare` and `tokenizer train`.
#ifndef TRIREME_DATA_TEXT_TEXT_READER_H_
#define TRIREME_DATA_TEXT_TEXT_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

enum class TextFormat {
  kByName,  // .jsonl, .ndjson and .json (before .gz or .zst): JSON lines. Others, and standard input: plain text.
  kPlain,
  kJsonLines,
};

struct TextReaderOptions {
  TextFormat format = TextFormat::kByName;
  std::string text_field = "text";  // of each JSON line
  std::string delimiter;            // plain text: each file is one document unless set
};

// Not thread-safe. Every error names the file, and the line where there is one.
class TextReader {
 public:
  // `paths`: files, folders (all regular files below, sorted by path, names that begin with a dot left out), "-" for
  // standard input; read in this order. Files may be compressed with gzip or zstd. Fails when a path is missing or a
  // folder holds no file.
  static absl::StatusOr<std::unique_ptr<TextReader>> Open(std::vector<std::string> paths,
                                                          const TextReaderOptions& options);
  virtual ~TextReader() = default;

  // Replaces `*document` by the next one; false at the end. Empty documents are passed over.
  virtual absl::StatusOr<bool> Next(std::string* document) = 0;

  virtual int64_t bytes_done() const = 0;   // of the files as they are on disk
  virtual int64_t bytes_total() const = 0;  // 0: unknown
};

}  // namespace trireme

#endif  // TRIREME_DATA_TEXT_TEXT_READER_H_
