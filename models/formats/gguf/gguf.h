// models/formats/gguf/gguf.h
// The GGUF container (ggml-org/ggml, docs/gguf.md and src/gguf.cpp), versions 2 and 3, little-endian: metadata, tensor
// descriptions, tensor data.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/status.h"
#include "models/formats/gguf/gguf_blocks.h"

namespace trireme {

// Alternatives stand at their type's number in the file, so index() is that number. Arrays of arrays are not supported
// (ggml refuses them too): the array's own place is empty.
using GgufArray = std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>, std::vector<int16_t>,
                               std::vector<uint32_t>, std::vector<int32_t>, std::vector<float>, std::vector<bool>,
                               std::vector<std::string>, std::monostate, std::vector<uint64_t>, std::vector<int64_t>,
                               std::vector<double>>;
using GgufValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool, std::string,
                               GgufArray, uint64_t, int64_t, double>;
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;  // in file order; keys differ

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;   // row-major, as in PyTorch: the reverse of the file's; at most 4 extents, none below 1
  uint64_t begin = 0, end = 0;  // bytes, from the start of the file once read; set by the writer

  int64_t rows() const;     // product of all extents but the last
  int64_t columns() const;  // the last extent; a row's elements are contiguous
};

// What stands before the tensor data of a file, or is to stand there: metadata and descriptions of tensors.
class GgufHeader {
 public:
  // origin: the file, for errors. Of keys or names that stand twice, the first counts.
  GgufHeader(std::string origin, GgufMetadata metadata, std::vector<GgufTensor> tensors);

  const std::string& origin() const { return origin_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const GgufValue* Find(const std::string& key) const;  // null when absent

  // A value by key. An error (kData, naming the origin) when it is absent (unless `if_absent` says what to take) or of
  // another kind; numbers of any width are taken.
  absl::StatusOr<int64_t> Integer(const std::string& key, std::optional<int64_t> if_absent = std::nullopt) const;
  absl::StatusOr<double> Number(const std::string& key, std::optional<double> if_absent = std::nullopt) const;
  absl::StatusOr<std::string> String(const std::string& key, std::optional<std::string> if_absent = std::nullopt) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* FindTensor(const std::string& name) const;         // null when absent

 private:
  std::string origin_;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> key_index_, tensor_index_;
};

// A file opened for reading: mapped, everything before the tensor data checked as ggml's own reader does (sizes, types,
// unique names, alignment, each tensor beginning where the one before it ends). Errors are kData and name the file.
class GgufFile {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  uint32_t version() const { return version_; }
  const GgufHeader& header() const { return header_; }
  const GgufMetadata& metadata() const { return header_.metadata(); }
  const std::vector<GgufTensor>& tensors() const { return header_.tensors(); }
  const GgufValue* Find(const std::string& key) const { return header_.Find(key); }
  const GgufTensor* FindTensor(const std::string& name) const { return header_.FindTensor(name); }
  absl::StatusOr<int64_t> Integer(const std::string& key, std::optional<int64_t> if_absent = std::nullopt) const {
    return header_.Integer(key, if_absent);
  }
  absl::StatusOr<double> Number(const std::string& key, std::optional<double> if_absent = std::nullopt) const {
    return header_.Number(key, if_absent);
  }
  absl::StatusOr<std::string> String(const std::string& key,
                                     std::optional<std::string> if_absent = std::nullopt) const {
    return header_.String(key, std::move(if_absent));
  }
  const uint8_t* data(const GgufTensor& tensor) const { return file_->data() + tensor.begin; }

  // Decodes columns [column_begin, column_end) of rows [row_begin, row_end) to `out`, densely. Any range will do; only
  // the blocks it touches are read.
  absl::Status Read(const GgufTensor& tensor, int64_t row_begin, int64_t row_end, int64_t column_begin,
                    int64_t column_end, float* out) const;

 private:
  GgufFile(std::shared_ptr<MappedFile> file, uint32_t version, GgufHeader header)
      : file_(std::move(file)), version_(version), header_(std::move(header)) {}

  std::shared_ptr<MappedFile> file_;
  uint32_t version_;
  GgufHeader header_;
};

// Whether a user who gives `path` for a model means a GGUF file: it is called so, or it is one.
bool NamesGguf(const std::string& path);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_H_
