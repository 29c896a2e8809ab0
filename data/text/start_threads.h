// data/text/start_threads.h
#ifndef TRIREME_DATA_TEXT_START_THREADS_H_
#define TRIREME_DATA_TEXT_START_THREADS_H_

#include <system_error>
#include <thread>
#include <vector>

namespace trireme {

// Threads that call run(0), run(1), ...: `count` of them, or as many as the system gives. Throws std::system_error when
// it gives none.
template <typename Run>
std::vector<std::thread> StartThreads(int count, const Run& run) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    try {
      threads.emplace_back(run, i);
    } catch (const std::system_error&) {
      if (threads.empty()) throw;
      break;
    }
  }
  return threads;
}

}  // namespace trireme

#endif  // TRIREME_DATA_TEXT_START_THREADS_H_
