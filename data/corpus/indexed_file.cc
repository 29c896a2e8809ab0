#include "data/corpus/indexed_file.h"

#include <cstring>
#include <limits>
#include <optional>

namespace trireme {
namespace {

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr uint64_t kVersion = 1;
constexpr uint64_t kIndexHeaderBytes = 34;
constexpr uint64_t kBytesPerSequence = sizeof(int32_t) + sizeof(int64_t);
constexpr int64_t kNarrowVocabLimit = 65500;

template <typename T>
T Load(const uint8_t* from, int64_t index = 0) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  return value;
}

std::optional<TokenType> TypeOfCode(uint8_t code) {
  switch (code) {
    case 1:
      return TokenType::kUint8;
    case 3:
      return TokenType::kInt16;
    case 4:
      return TokenType::kInt32;
    case 5:
      return TokenType::kInt64;
    case 8:
      return TokenType::kUint16;
    default:
      return std::nullopt;
  }
}

}  // namespace

IndexedFile::IndexedFile(std::shared_ptr<MappedFile> index, std::unique_ptr<TokenFile> tokens, int token_bytes,
                         int64_t num_sequences, int64_t num_documents)
    : index_(std::move(index)),
      tokens_(std::move(tokens)),
      token_bytes_(token_bytes),
      num_sequences_(num_sequences),
      num_documents_(num_documents),
      lengths_(index_->data() + kIndexHeaderBytes),
      pointers_(lengths_ + num_sequences * sizeof(int32_t)),
      document_indices_(pointers_ + num_sequences * sizeof(int64_t)) {}

absl::StatusOr<std::shared_ptr<const IndexedFile>> IndexedFile::Open(const std::string& prefix, int64_t vocab_size) {
  const std::string path = prefix + ".idx";
  ASSIGN_OR_RETURN(std::shared_ptr<MappedFile> index, MappedFile::Open(path));
  const auto damaged = [&](const auto&... what) {
    return Error(ExitCode::kData, "open ", path, ": ", what..., "; rebuild it with `trireme prepare`");
  };
  const uint8_t* data = index->data();
  if (index->size() < kIndexHeaderBytes || std::memcmp(data, kMagic, sizeof(kMagic)) != 0) {
    return damaged("not a Megatron index (it must begin with MMIDIDX)");
  }
  const uint64_t version = Load<uint64_t>(data + 9);
  if (version != kVersion) return damaged("index version ", version, ", only ", kVersion, " is known");
  const int code = data[17];
  const std::optional<TokenType> type = TypeOfCode(data[17]);
  if (!type) return damaged("element type ", code, " does not hold tokens (1, 3, 4, 5 and 8 do)");
  const uint64_t num_sequences = Load<uint64_t>(data + 18);
  const uint64_t num_indices = Load<uint64_t>(data + 26);
  const uint64_t array_bytes = index->size() - kIndexHeaderBytes;
  // The two bounds first: the products below cannot overflow then.
  if (num_sequences > array_bytes / kBytesPerSequence || num_indices > array_bytes / sizeof(int64_t) ||
      num_indices < 1 || num_sequences * kBytesPerSequence + num_indices * sizeof(int64_t) != array_bytes) {
    return damaged(num_sequences, " sequences and ", num_indices, " document indices do not fit its size of ",
                   index->size(), " bytes");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<TokenFile> tokens, TokenFile::Open(prefix + ".bin", *type, 0, vocab_size));
  std::shared_ptr<const IndexedFile> file(new IndexedFile(std::move(index), std::move(tokens), TokenBytes(*type),
                                                          static_cast<int64_t>(num_sequences),
                                                          static_cast<int64_t>(num_indices) - 1));
  RETURN_IF_ERROR(file->CheckIndex());
  return file;
}

absl::Status IndexedFile::CheckIndex() const {
  const auto damaged = [&](const auto&... what) {
    return Error(ExitCode::kData, "open ", index_->path(), ": ", what...,
                 "; rebuild the corpus with `trireme prepare`");
  };
  int64_t expected = 0;
  for (int64_t i = 0; i < num_sequences_; ++i) {
    const int32_t length = Load<int32_t>(lengths_, i);
    const int64_t pointer = Load<int64_t>(pointers_, i);
    if (length < 0) return damaged("sequence ", i, " has the length ", length);
    if (pointer != expected) return damaged("sequence ", i, " is at byte ", pointer, ", expected ", expected);
    expected += int64_t{length} * token_bytes_;
    if (expected > bin_bytes()) {
      return damaged("sequence ", i, " ends at byte ", expected, " but ", tokens_->path(), " has ", bin_bytes(),
                     " bytes: it is truncated, or not the .bin of this index");
    }
  }
  if (expected != bin_bytes()) {
    return damaged("describes ", expected, " bytes of tokens but ", tokens_->path(), " has ", bin_bytes(),
                   ": it is not the .bin of this index");
  }
  int64_t previous = 0;
  for (int64_t i = 0; i <= num_documents_; ++i) {
    const int64_t sequence = Load<int64_t>(document_indices_, i);
    if (i == 0 ? sequence != 0 : sequence < previous || sequence > num_sequences_) {
      return damaged("document index ", i, " is ", sequence, ", must ascend from 0 to ", num_sequences_);
    }
    previous = sequence;
  }
  if (previous != num_sequences_) return damaged("documents end at sequence ", previous, " of ", num_sequences_);
  return absl::OkStatus();
}

int64_t IndexedFile::DocumentBegin(int64_t document) const {
  const int64_t sequence = Load<int64_t>(document_indices_, document);
  if (sequence == num_sequences_) return num_tokens();
  return Load<int64_t>(pointers_, sequence) / token_bytes_;
}

absl::Status IndexedFile::DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const {
  TRIREME_CHECK(count <= std::numeric_limits<int32_t>::max());
  out->clear();
  // The first document that starts behind `begin`.
  int64_t low = 0, high = num_documents_;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (DocumentBegin(middle) > begin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  for (; low < num_documents_; ++low) {
    const int64_t offset = DocumentBegin(low) - begin;
    if (offset >= count) return absl::OkStatus();
    if (out->empty() || out->back() != offset)
      out->push_back(static_cast<int32_t>(offset));  // Empty documents share one start.
  }
  return absl::OkStatus();
}

absl::StatusOr<Digest> IndexedFile::Fingerprint() const {
  ASSIGN_OR_RETURN(const Digest tokens, tokens_->Fingerprint());
  const std::string both = absl::StrCat(HashBytes(index_->data(), index_->size()), " ", tokens);
  return HashBytes(both.data(), both.size());
}

absl::StatusOr<std::unique_ptr<IndexedFileWriter>> IndexedFileWriter::Create(const std::string& prefix,
                                                                             int64_t vocab_size) {
  ASSIGN_OR_RETURN(std::unique_ptr<FileWriter> bin, FileWriter::Create(prefix + ".bin"));
  return std::unique_ptr<IndexedFileWriter>(
      new IndexedFileWriter(prefix, vocab_size < kNarrowVocabLimit, std::move(bin)));
}

absl::Status IndexedFileWriter::AddDocument(const int32_t* ids, int64_t count) {
  TRIREME_CHECK(count <= std::numeric_limits<int32_t>::max());
  lengths_.push_back(static_cast<int32_t>(count));
  num_tokens_ += count;
  if (!narrow_) return bin_->Append(ids, count * sizeof(int32_t));
  narrow_ids_.assign(ids, ids + count);
  return bin_->Append(narrow_ids_.data(), count * sizeof(uint16_t));
}

absl::Status IndexedFileWriter::Finish() {
  RETURN_IF_ERROR(bin_->Close());
  ASSIGN_OR_RETURN(std::unique_ptr<FileWriter> idx, FileWriter::Create(prefix_ + ".idx"));
  const auto append = [&idx](const auto& value) { return idx->Append(&value, sizeof(value)); };
  const uint8_t code = narrow_ ? 8 : 4;
  const int64_t width = narrow_ ? sizeof(uint16_t) : sizeof(int32_t);
  RETURN_IF_ERROR(idx->Append(kMagic, sizeof(kMagic)));
  RETURN_IF_ERROR(append(kVersion));
  RETURN_IF_ERROR(append(code));
  RETURN_IF_ERROR(append(uint64_t{lengths_.size()}));
  RETURN_IF_ERROR(append(uint64_t{lengths_.size() + 1}));
  RETURN_IF_ERROR(idx->Append(lengths_.data(), lengths_.size() * sizeof(int32_t)));
  int64_t pointer = 0;
  for (const int32_t length : lengths_) {
    RETURN_IF_ERROR(append(pointer));
    pointer += length * width;
  }
  for (int64_t document = 0; document <= num_documents(); ++document) RETURN_IF_ERROR(append(document));
  RETURN_IF_ERROR(idx->Close());
  idx_digest_ = idx->digest();
  return absl::OkStatus();
}

}  // namespace trireme
