#include "data/tokenizer/bpe_word_counter.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/text/start_threads.h"
#include "data/unicode/unicode.h"
#include "launch/base/exception.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

constexpr size_t kMaxWaitingBytes = size_t{256} << 20;  // of documents read but not yet counted

using Counts = absl::flat_hash_map<std::string, int64_t>;

class CountingSink : public PieceSink {
 public:
  explicit CountingSink(Counts* counts) : counts_(counts) {}
  void OnPiece(absl::string_view piece) override { ++(*counts_)[piece]; }

 private:
  Counts* counts_;
};

// Documents on their way from the reader to the counting threads.
class DocumentQueue {
 public:
  // Waits while too much is waiting already. False when the queue is closed.
  bool Push(std::string document) {
    std::unique_lock<std::mutex> lock(mutex_);
    not_full_.wait(lock, [this] { return closed_ || waiting_bytes_ < kMaxWaitingBytes; });
    if (closed_) return false;
    waiting_bytes_ += document.size();
    documents_.push_back(std::move(document));
    not_empty_.notify_one();
    return true;
  }
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    not_empty_.notify_all();
    not_full_.notify_all();
  }
  // False when the queue is closed and empty.
  bool Pop(std::string* document) {
    std::unique_lock<std::mutex> lock(mutex_);
    not_empty_.wait(lock, [this] { return closed_ || !documents_.empty(); });
    if (documents_.empty()) return false;
    *document = std::move(documents_.front());
    documents_.pop_front();
    waiting_bytes_ -= document->size();
    not_full_.notify_one();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable not_empty_;
  std::condition_variable not_full_;
  std::deque<std::string> documents_;
  size_t waiting_bytes_ = 0;
  bool closed_ = false;
};

absl::Status CountDocuments(DocumentQueue* queue, Counts* counts) {
  const Gpt2Splitter splitter;
  CountingSink sink(counts);
  std::string document;
  while (queue->Pop(&document)) {
    if (!IsValidUtf8(document)) document = RepairUtf8(document);
    RETURN_IF_ERROR(splitter.Split(document, &sink));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::pair<std::string, int64_t>>> CountWords(const DocumentSource& source, int num_threads) {
  if (num_threads <= 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
  DocumentQueue queue;
  std::vector<Counts> counts(num_threads);
  std::vector<absl::Status> ends(num_threads);
  FirstException exception;
  std::vector<std::thread> threads = StartThreads(num_threads, [&](int i) {
    try {
      ends[i] = CountDocuments(&queue, &counts[i]);
    } catch (...) {
      exception.Keep();
    }
    queue.Close();  // Without this thread nobody may be left to make room.
  });
  Progress progress("tokenizer: counting words", 0, "B");
  absl::Status status;
  int64_t bytes = 0;
  while (true) {
    std::string document;
    const absl::StatusOr<bool> more = source(&document);
    status = more.status();
    if (!more.ok() || !*more) break;
    bytes += static_cast<int64_t>(document.size());
    if (!queue.Push(std::move(document))) break;
    progress.Update(bytes);
  }
  queue.Close();
  for (std::thread& thread : threads) thread.join();
  RETURN_IF_ERROR(exception.status("use fewer --threads, or shorter documents"));
  for (const absl::Status& end : ends) RETURN_IF_ERROR(end);
  RETURN_IF_ERROR(status);
  progress.Finish();
  Counts total = std::move(counts[0]);
  for (size_t i = 1; i < counts.size(); ++i) {
    for (const auto& [word, count] : counts[i]) total[word] += count;
  }
  std::vector<std::pair<std::string, int64_t>> words(total.begin(), total.end());
  std::sort(words.begin(), words.end());
  return words;
}

}  // namespace trireme
