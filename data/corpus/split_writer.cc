#include "data/corpus/split_writer.h"

#include <absl/strings/str_format.h>

#include <filesystem>
#include <utility>

namespace trireme {

SplitWriter::SplitWriter(std::string folder, std::string split, int64_t vocab_size, int64_t shard_tokens)
    : folder_(std::move(folder)), vocab_size_(vocab_size), shard_tokens_(shard_tokens) {
  summary_.set_name(std::move(split));
  summary_.set_num_documents(0);
  summary_.set_num_tokens(0);
}

absl::Status SplitWriter::AddDocument(const int32_t* ids, int64_t count) {
  if (writer_ != nullptr && writer_->num_tokens() + count > shard_tokens_) RETURN_IF_ERROR(FinishShard());
  if (writer_ == nullptr) {
    CorpusShard* shard = summary_.add_shard();
    shard->set_name(absl::StrFormat("%s-%05d", summary_.name(), summary_.shard_size() - 1));
    ASSIGN_OR_RETURN(writer_,
                     IndexedFileWriter::Create((std::filesystem::path(folder_) / shard->name()).string(), vocab_size_));
  }
  return writer_->AddDocument(ids, count);
}

absl::Status SplitWriter::FinishShard() {
  RETURN_IF_ERROR(writer_->Finish());
  CorpusShard* shard = summary_.mutable_shard(summary_.shard_size() - 1);
  shard->set_num_documents(writer_->num_documents());
  shard->set_num_tokens(writer_->num_tokens());
  shard->set_bin_bytes(writer_->bin_bytes());
  shard->set_bin_digest(writer_->bin_digest());
  shard->set_idx_digest(writer_->idx_digest());
  summary_.set_num_documents(summary_.num_documents() + shard->num_documents());
  summary_.set_num_tokens(summary_.num_tokens() + shard->num_tokens());
  writer_ = nullptr;
  return absl::OkStatus();
}

absl::Status SplitWriter::Finish() { return writer_ == nullptr ? absl::OkStatus() : FinishShard(); }

}  // namespace trireme
