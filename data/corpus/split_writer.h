// data/corpus/split_writer.h
// One split of a corpus being written: shards named SPLIT-00000 and on.
#ifndef TRIREME_DATA_CORPUS_SPLIT_WRITER_H_
#define TRIREME_DATA_CORPUS_SPLIT_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "data/corpus/indexed_file.h"
#include "data/corpus/manifest.pb.h"
#include "launch/base/status.h"

namespace trireme {

class SplitWriter {
 public:
  SplitWriter(std::string folder, std::string split, int64_t vocab_size, int64_t shard_tokens);

  // Begins a new shard when this document would make the current one larger than `shard_tokens`.
  absl::Status AddDocument(const int32_t* ids, int64_t count);
  // Finishes the last shard; summary() is complete then.
  absl::Status Finish();
  const CorpusSplit& summary() const { return summary_; }

 private:
  absl::Status FinishShard();

  std::string folder_;
  int64_t vocab_size_;
  int64_t shard_tokens_;
  std::unique_ptr<IndexedFileWriter> writer_;  // The current shard; null between shards.
  CorpusSplit summary_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_SPLIT_WRITER_H_
