#include "data/sampling/loader.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "launch/base/exception.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

void CloseSegment(Microbatch* microbatch) {
  const int32_t begin = microbatch->cu_seqlens.back();
  const int32_t end = static_cast<int32_t>(microbatch->tokens.size());
  if (end == begin) return;
  microbatch->cu_seqlens.push_back(end);
  microbatch->max_seqlen = std::max(microbatch->max_seqlen, end - begin);
}

class PrefetchingLoader : public Loader {
 public:
  PrefetchingLoader(std::shared_ptr<const Sampler> sampler, const LoaderOptions& options)
      : sampler_(std::move(sampler)), options_(options), thread_([this] { ProduceAndCatch(); }) {}

  ~PrefetchingLoader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::StatusOr<StepBatch> Next() override {
    const double start = MonotonicSeconds();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty() || failed_; });
    const double wait_ms = (MonotonicSeconds() - start) * 1e3;
    if (ready_.empty())
      return Annotate(exception_.status("lower micro_batch_size, data.sequence_length or data.prefetch_steps"), "data");
    if (!ready_.front().ok()) return ready_.front().status();  // Stays: every later call fails too.
    StepBatch batch = *std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    changed_.notify_all();
    batch.wait_ms = wait_ms;
    return batch;
  }

 private:
  void ProduceAndCatch() {
    try {
      Produce();
    } catch (...) {
      exception_.Keep();
      {
        std::lock_guard<std::mutex> lock(mutex_);
        failed_ = true;
      }
      changed_.notify_all();
    }
  }

  void Produce() {
    const size_t capacity = std::max(1, options_.prefetch_steps);
    for (int64_t step = 0;; ++step) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || ready_.size() < capacity; });
        if (stop_) return;
      }
      absl::StatusOr<StepBatch> batch = MakeStep(step);
      const bool ok = batch.ok();
      {
        std::lock_guard<std::mutex> lock(mutex_);
        ready_.push_back(std::move(batch));
      }
      changed_.notify_all();
      if (!ok) return;
    }
  }

  absl::StatusOr<StepBatch> MakeStep(int64_t step) const {
    const int64_t per_rank = options_.global_batch_size / options_.num_data_ranks;
    const int64_t tokens = options_.micro_batch_size * options_.sequence_length;
    int64_t index = options_.first_sample + step * options_.global_batch_size + options_.data_rank * per_rank;
    StepBatch batch;
    for (int64_t done = 0; done < per_rank; done += options_.micro_batch_size) {
      Microbatch& microbatch = batch.microbatches.emplace_back();
      microbatch.first_sample = index;
      for (auto* field : {&microbatch.tokens, &microbatch.targets, &microbatch.positions}) field->reserve(tokens);
      for (int64_t i = 0; i < options_.micro_batch_size; ++i, ++index) {
        ASSIGN_OR_RETURN(const Sample sample, sampler_->Get(index));
        AppendSequence(sample, options_.document_mask, &microbatch);
      }
    }
    return batch;
  }

  const std::shared_ptr<const Sampler> sampler_;
  const LoaderOptions options_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<absl::StatusOr<StepBatch>> ready_;  // An error is the last element.
  FirstException exception_;
  bool failed_ = false;  // exception_ holds what ended the thread; steps made before it are still given
  bool stop_ = false;
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace

void AppendSequence(const Sample& sample, bool document_mask, Microbatch* microbatch) {
  const int64_t length = static_cast<int64_t>(sample.tokens.size()) - 1;
  if (microbatch->cu_seqlens.empty()) microbatch->cu_seqlens.push_back(0);
  size_t next_start = document_mask ? 0 : sample.document_starts.size();
  int64_t position = 0;
  for (int64_t i = 0; i < length; ++i) {
    microbatch->tokens.push_back(sample.tokens[i]);
    microbatch->positions.push_back(position++);
    // The last token of a document does not predict the first of the next.
    const bool document_ends =
        next_start < sample.document_starts.size() && sample.document_starts[next_start] == i + 1;
    const int64_t target = sample.targets.empty() ? sample.tokens[i + 1] : sample.targets[i];
    microbatch->targets.push_back(document_ends ? kIgnoredTarget : target);
    if (microbatch->targets.back() != kIgnoredTarget) ++microbatch->num_targets;
    if (!document_ends) continue;
    ++next_start;
    CloseSegment(microbatch);
    position = 0;
  }
  CloseSegment(microbatch);
  microbatch->filling.push_back(sample.filling);
}

absl::StatusOr<std::unique_ptr<Loader>> Loader::Create(std::shared_ptr<const Sampler> sampler,
                                                       const LoaderOptions& options) {
  TRIREME_CHECK(sampler != nullptr && options.data_rank >= 0 && options.data_rank < options.num_data_ranks &&
                options.first_sample >= 0);
  if (options.sequence_length != sampler->sequence_length()) {
    return Error(ExitCode::kConfig, "data: the loader's sequence_length is ", options.sequence_length,
                 ", the sampler's ", sampler->sequence_length());
  }
  if (options.micro_batch_size <= 0 || options.global_batch_size <= 0 ||
      options.global_batch_size % (options.micro_batch_size * options.num_data_ranks) != 0) {
    return Error(ExitCode::kConfig, "data: global_batch_size ", options.global_batch_size,
                 " is not a multiple of micro_batch_size ", options.micro_batch_size, " x ", options.num_data_ranks,
                 " data-parallel ranks; change one of them");
  }
  if (options.micro_batch_size > std::numeric_limits<int32_t>::max() / options.sequence_length) {
    return Error(ExitCode::kConfig, "data: micro_batch_size ", options.micro_batch_size, " x sequence_length ",
                 options.sequence_length, " tokens are more than fit one microbatch; lower micro_batch_size");
  }
  return std::make_unique<PrefetchingLoader>(std::move(sampler), options);
}

}  // namespace trireme
