#include "data/prepare/tokenize_pipeline.h"

#include <utility>

#include "data/text/start_threads.h"
#include "launch/base/exception.h"

namespace trireme {
namespace {

constexpr int64_t kBatchBytes = 256 << 10;
constexpr int64_t kBatchesAheadPerThread = 8;

}  // namespace

TokenizePipeline::TokenizePipeline(TextReader* reader, const Tokenizer* tokenizer, int threads)
    : reader_(reader), tokenizer_(tokenizer), max_ahead_(threads * kBatchesAheadPerThread) {
  TRIREME_CHECK(threads > 0 && tokenizer->end_of_document() >= 0);
  threads_ = StartThreads(threads, [this](int) { WorkAndCatch(); });
}

TokenizePipeline::~TokenizePipeline() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool TokenizePipeline::Read(std::vector<std::string>* documents, TokenBatch* batch, int64_t* number) {
  std::lock_guard<std::mutex> read_lock(read_mutex_);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || at_end_ || num_read_ < num_delivered_ + max_ahead_; });
    if (stop_ || at_end_) return false;
  }
  documents->clear();
  absl::StatusOr<bool> more = true;
  std::string document;
  while (batch->text_bytes < kBatchBytes && (more = reader_->Next(&document)).ok() && *more) {
    batch->text_bytes += static_cast<int64_t>(document.size());
    documents->push_back(std::exchange(document, std::string()));
  }
  batch->bytes_done = reader_->bytes_done();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    at_end_ = at_end_ || !more.ok() || !*more;
    read_status_ = more.status();
    *number = num_read_;
    if (!documents->empty()) ++num_read_;
  }
  changed_.notify_all();
  return !documents->empty();
}

void TokenizePipeline::WorkAndCatch() {
  try {
    Work();
  } catch (...) {
    exception_.Keep();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      failed_ = at_end_ = true;
    }
    changed_.notify_all();
  }
}

void TokenizePipeline::Work() {
  std::vector<std::string> documents;
  while (true) {
    TokenBatch batch;
    int64_t number = 0;
    if (!Read(&documents, &batch, &number)) return;
    absl::Status status;
    for (const std::string& document : documents) {
      status = tokenizer_->Encode(document, &batch.ids);
      if (!status.ok()) break;
      batch.ids.push_back(tokenizer_->end_of_document());
      batch.document_ends.push_back(static_cast<int64_t>(batch.ids.size()));
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (status.ok()) {
        finished_.emplace(number, std::move(batch));
      } else {
        finished_.emplace(number, status);
        at_end_ = true;  // Nobody asks for what comes after.
      }
    }
    changed_.notify_all();
  }
}

absl::StatusOr<bool> TokenizePipeline::Next(TokenBatch* batch) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] {
    return failed_ || finished_.count(num_delivered_) > 0 || (at_end_ && num_delivered_ == num_read_);
  });
  if (failed_) return exception_.status("use fewer --threads, or shorter documents");
  const auto found = finished_.find(num_delivered_);
  if (found == finished_.end()) {
    RETURN_IF_ERROR(read_status_);
    return false;
  }
  if (!found->second.ok()) return found->second.status();  // Stays: every later call fails too.
  *batch = *std::move(found->second);
  finished_.erase(found);
  ++num_delivered_;
  lock.unlock();
  changed_.notify_all();
  return true;
}

}  // namespace trireme
