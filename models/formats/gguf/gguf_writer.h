// models/formats/gguf/gguf_writer.h
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_WRITER_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_WRITER_H_

#include <memory>
#include <string>
#include <vector>

#include "models/formats/gguf/gguf.h"

namespace trireme {

// Writes a GGUF file (version 3, alignment 32) front to back into `path`.tmp, which becomes `path` when it is whole:
//   ASSIGN_OR_RETURN(auto writer, GgufWriter::Create(path, metadata, tensors));
//   for (each tensor, in order) for (some rows at a time) RETURN_IF_ERROR(writer->Append(values, count));
//   ASSIGN_OR_RETURN(GgufWritten written, writer->Close());
// Memory: the metadata once and what is passed to Append.
struct GgufWritten {
  uint64_t bytes = 0;
  Digest digest;
};

class GgufWriter {
 public:
  // Writes all that comes before the data. Names must differ and have at most 63 bytes (llama.cpp's limit), rows must
  // be whole blocks, general.alignment must not be among the metadata. begin and end of the tensors are ignored.
  static absl::StatusOr<std::unique_ptr<GgufWriter>> Create(const std::string& path, const GgufMetadata& metadata,
                                                            std::vector<GgufTensor> tensors);
  ~GgufWriter();  // Without Close(), removes what was written.
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // The tensor that the next bytes belong to; null when all are written.
  const GgufTensor* current() const;

  // Appends the next `count` elements of current(), converted to its type: whole blocks, not past its end.
  absl::Status Append(const float* values, int64_t count);
  // Appends bytes of current() that are in its type already, not past its end.
  absl::Status AppendRaw(const void* data, uint64_t size);

  // All tensors must be complete. Afterwards `path` is the whole file, durable; `path`.tmp is gone.
  absl::StatusOr<GgufWritten> Close();

 private:
  GgufWriter(std::string path, std::vector<GgufTensor> tensors)
      : path_(std::move(path)), tensors_(std::move(tensors)) {}
  absl::Status Pad();

  std::string path_;
  std::vector<GgufTensor> tensors_;
  size_t current_ = 0;
  std::unique_ptr<FileWriter> file_;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_WRITER_H_
