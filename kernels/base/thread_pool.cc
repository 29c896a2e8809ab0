#include "kernels/base/thread_pool.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace trireme {
namespace {

// Idle workers spin this long before they sleep: longer than the gap between two kernels of a step, shorter than a
// scheduler slice.
constexpr int kSpins = 20000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) {
    // Where the system gives fewer threads, the others do the work.
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void Run(int64_t num_tasks, void (*run)(void*, int64_t), void* context) {
    if (workers_.empty() || num_tasks == 1 || busy_) {
      for (int64_t i = 0; i < num_tasks; ++i) run(context, i);
      return;
    }
    busy_ = true;
    run_ = run;
    context_ = context;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    active_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    TakeTasks();
    for (int spins = 0; active_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < kSpins) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
    busy_ = false;
    // No worker looks at the context any more, so the caller may leave.
    if (exception_ != nullptr) std::rethrow_exception(std::exchange(exception_, nullptr));
  }

 private:
  void TakeTasks() {
    while (true) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks_) return;
      try {
        run_(context_, task);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (exception_ == nullptr) exception_ = std::current_exception();
        next_.store(num_tasks_, std::memory_order_relaxed);  // What is not begun is left.
      }
    }
  }

  void WorkerLoop() {
    uint64_t seen = 0;
    while (true) {
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == seen) {
        if (++spins < kSpins) {
          Pause();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_release);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_release);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stopping_) return;
      inside_task_ = true;
      TakeTasks();
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

 public:
  static bool inside_worker() { return inside_task_; }

 private:
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<int> active_{0};
  std::atomic<int64_t> next_{0};
  int64_t num_tasks_ = 0;
  void (*run_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr exception_;  // the first that a task threw; guarded by mutex_ while tasks run
  bool busy_ = false;
  bool stopping_ = false;
  static thread_local bool inside_task_;  // Set in workers for good.
};

thread_local bool Pool::inside_task_ = false;

// One pool for the process, like the cores it stands for.
std::unique_ptr<Pool> pool;

}  // namespace

void SetCpuThreads(int threads) {
  pool = std::make_unique<Pool>(threads < 1 ? 1 : threads);
  at::set_num_threads(1);
}

int CpuThreads() {
  if (!pool) SetCpuThreads(static_cast<int>(std::thread::hardware_concurrency()));
  return pool->threads();
}

void internal::RunTasks(int64_t num_tasks, void (*run)(void*, int64_t), void* context) {
  if (Pool::inside_worker()) {
    for (int64_t i = 0; i < num_tasks; ++i) run(context, i);
    return;
  }
  CpuThreads();
  pool->Run(num_tasks, run, context);
}

}  // namespace trireme
