// data/corpus/indexed_file.h
// Megatron's indexed dataset: PREFIX.bin holds tokens, PREFIX.idx says where sequences and documents lie.
// .idx: "MMIDIDX\0\0", u64 version 1, u8 type, u64 sequences, u64 documents + 1, i32 length of each sequence, i64 byte
// position of each sequence, i64 first sequence of each document and the end. 34 bytes of header, so the arrays are
// unaligned. Format: megatron/core/datasets/indexed_dataset.py of NVIDIA/Megatron-LM.
#ifndef TRIREME_DATA_CORPUS_INDEXED_FILE_H_
#define TRIREME_DATA_CORPUS_INDEXED_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/token_file.h"
#include "launch/base/file.h"

namespace trireme {

class IndexedFile : public TokenStream {
 public:
  // Checks all of the index (20 bytes per document are read) before anything relies on it: sequences must follow one
  // another without gaps and fill the .bin exactly, document indices must ascend from 0 to the number of sequences.
  static absl::StatusOr<std::shared_ptr<const IndexedFile>> Open(const std::string& prefix, int64_t vocab_size);

  int64_t num_tokens() const override { return tokens_->num_tokens(); }
  int64_t num_documents() const override { return num_documents_; }
  absl::Status Read(int64_t begin, int64_t count, int64_t* out) const override {
    return tokens_->Read(begin, count, out);
  }
  absl::Status DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const override;
  std::string description() const override { return tokens_->path(); }

  int64_t bin_bytes() const { return tokens_->file_bytes(); }
  // Identifies index and tokens; the tokens are sampled, not read whole.
  absl::StatusOr<Digest> Fingerprint() const;

 private:
  IndexedFile(std::shared_ptr<MappedFile> index, std::unique_ptr<TokenFile> tokens, int token_bytes,
              int64_t num_sequences, int64_t num_documents);
  absl::Status CheckIndex() const;
  int64_t DocumentBegin(int64_t document) const;  // In tokens.

  std::shared_ptr<MappedFile> index_;
  std::unique_ptr<TokenFile> tokens_;
  int token_bytes_;
  int64_t num_sequences_;
  int64_t num_documents_;
  const uint8_t* lengths_;           // i32 [sequences]
  const uint8_t* pointers_;          // i64 [sequences]
  const uint8_t* document_indices_;  // i64 [documents + 1]
};

// Writes PREFIX.bin and PREFIX.idx, each document one sequence. Keeps 4 bytes per document in memory.
class IndexedFileWriter {
 public:
  // Vocabularies below 65,500 are stored as u16, others as i32, as Megatron does.
  static absl::StatusOr<std::unique_ptr<IndexedFileWriter>> Create(const std::string& prefix, int64_t vocab_size);

  // Every id must be in [0, vocab_size).
  absl::Status AddDocument(const int32_t* ids, int64_t count);
  // Writes the index and makes both files durable.
  absl::Status Finish();

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t bin_bytes() const { return static_cast<int64_t>(bin_->size()); }
  Digest bin_digest() const { return bin_->digest(); }
  const Digest& idx_digest() const { return idx_digest_; }  // After Finish().

 private:
  IndexedFileWriter(std::string prefix, bool narrow, std::unique_ptr<FileWriter> bin)
      : prefix_(std::move(prefix)), narrow_(narrow), bin_(std::move(bin)) {}

  std::string prefix_;
  bool narrow_;  // u16
  std::unique_ptr<FileWriter> bin_;
  std::vector<int32_t> lengths_;
  std::vector<uint16_t> narrow_ids_;  // Reused.
  int64_t num_tokens_ = 0;
  Digest idx_digest_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_INDEXED_FILE_H_
