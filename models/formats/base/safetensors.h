// models/formats/base/safetensors.h
// The safetensors container (github.com/huggingface/safetensors): u64 header length, JSON header, one contiguous byte
// buffer.
#ifndef TRIREME_MODELS_FORMATS_BASE_SAFETENSORS_H_
#define TRIREME_MODELS_FORMATS_BASE_SAFETENSORS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/status.h"

namespace trireme {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the file once read; set by the writer
};

// Bytes of one element of a safetensors dtype; 0 when the dtype is unknown or has no whole number of bytes.
int SafetensorsElementSize(const std::string& dtype);

// A file opened for reading: mapped, its header checked as the reference implementation does (size, no holes, no
// overlaps, no duplicate keys, shape x dtype = range, end = end of file). Errors are kData and name the file.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order of their bytes
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const uint8_t* data(const SafetensorsEntry& entry) const { return file_->data() + entry.begin; }
  const std::string& path() const { return file_->path(); }

 private:
  std::shared_ptr<MappedFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

// Writes a file front to back. `produce` is called once per entry, in order, and must append exactly that entry's
// bytes. Names must differ; begin and end of the entries are ignored. Returns the digest of the whole file, which is
// durable then.
struct SafetensorsWritten {
  uint64_t bytes = 0;
  Digest digest;
};
absl::StatusOr<SafetensorsWritten> WriteSafetensors(
    const std::string& path, const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const SafetensorsEntry&, FileWriter&)>& produce);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_BASE_SAFETENSORS_H_
