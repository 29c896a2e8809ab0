// kernels/base/thread_pool.h
// The one pool of CPU threads. Kernels split their work into chunks that do not depend on the number of threads, so
// results do not either.
#ifndef TRIREME_KERNELS_BASE_THREAD_POOL_H_
#define TRIREME_KERNELS_BASE_THREAD_POOL_H_

#include <cstdint>
#include <type_traits>

namespace trireme {

// Called once, before the first kernel; later calls change the number. Also tells libtorch to use one thread, because
// this pool splits its work. `threads` >= 1 includes the calling thread.
void SetCpuThreads(int threads);
int CpuThreads();

namespace internal {
void RunTasks(int64_t num_tasks, void (*run)(void* context, int64_t task), void* context);
}

// Calls task(i) for i in [0, num_tasks), spread over the threads; returns when all are done. Nested calls run in the
// caller. What a task throws is thrown here, the first of several, once no thread is inside a task any more; tasks that
// had not begun are left out. Only one thread of the process may be outside any task and call this (the main thread; on
// CPU autograd runs there too).
template <typename F>
void ParallelTasks(int64_t num_tasks, F&& task) {
  using Task = std::remove_reference_t<F>;
  internal::RunTasks(
      num_tasks, [](void* context, int64_t i) { (*static_cast<Task*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// Calls body(begin, end) on ranges that cover [0, n), each of at most `grain` elements.
template <typename F>
void ParallelRanges(int64_t n, int64_t grain, F&& body) {
  if (n <= 0) return;
  const int64_t tasks = (n + grain - 1) / grain;
  ParallelTasks(tasks, [&](int64_t i) { body(i * grain, i + 1 == tasks ? n : (i + 1) * grain); });
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_THREAD_POOL_H_
