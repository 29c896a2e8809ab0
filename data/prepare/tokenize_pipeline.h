// data/prepare/tokenize_pipeline.h
// Documents to tokens on several threads, delivered in the order of the documents.
#ifndef TRIREME_DATA_PREPARE_TOKENIZE_PIPELINE_H_
#define TRIREME_DATA_PREPARE_TOKENIZE_PIPELINE_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "data/text/text_reader.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/exception.h"
#include "launch/base/status.h"

namespace trireme {

// Consecutive documents, each followed by the end-of-document token.
struct TokenBatch {
  std::vector<int32_t> ids;
  std::vector<int64_t> document_ends;  // offsets into ids
  int64_t text_bytes = 0;
  int64_t bytes_done = 0;  // of the reader, after this batch
};

// Every thread reads a batch (one at a time), tokenizes it and waits when it is too far ahead of Next(), so memory is
// bounded. What is delivered does not depend on the number of threads.
class TokenizePipeline {
 public:
  // `reader` and `tokenizer` must outlive this; nobody else may use `reader`. The tokenizer must have an
  // end-of-document token.
  TokenizePipeline(TextReader* reader, const Tokenizer* tokenizer, int threads);
  ~TokenizePipeline();
  TokenizePipeline(const TokenizePipeline&) = delete;
  TokenizePipeline& operator=(const TokenizePipeline&) = delete;

  // The next batch; false at the end. An error of the reader or of a document comes after everything before it; when
  // memory runs out in a thread, kOutOfMemory comes at once.
  absl::StatusOr<bool> Next(TokenBatch* batch);

 private:
  void WorkAndCatch();
  void Work();
  // Reads the documents of one batch and gives it a number; false when there is nothing left or the pipeline stops.
  bool Read(std::vector<std::string>* documents, TokenBatch* batch, int64_t* number);

  TextReader* const reader_;
  const Tokenizer* const tokenizer_;
  const int64_t max_ahead_;  // batches

  std::mutex read_mutex_;  // Held by the thread that reads; taken before mutex_.

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  std::map<int64_t, absl::StatusOr<TokenBatch>> finished_;  // By number.
  int64_t num_read_ = 0;
  int64_t num_delivered_ = 0;
  bool at_end_ = false;
  absl::Status read_status_;
  FirstException exception_;
  bool failed_ = false;  // exception_ holds what ended a thread
  bool stop_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PREPARE_TOKENIZE_PIPELINE_H_
