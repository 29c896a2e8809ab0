// Runs GoogleTest as one rank of an MPI job. Rank 0 prints as usual, the others only what failed; a failure on any rank
// fails the job.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <memory>
#include <string>

#include "kernels/base/cpu_allocator.h"
#include "kernels/base/thread_pool.h"
#include "tests/parallel/multi_rank.h"

namespace trireme {
namespace {

const Process* process = nullptr;

// One whole line a failure, so that the ranks' output does not mix.
class FailurePrinter : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s failed at %s:%d: %s\n", process->rank(), test_.c_str(),
                 result.file_name() == nullptr ? "?" : result.file_name(), result.line_number(), result.message());
  }
  std::string test_;
};

}  // namespace

const Process& TestProcess() { return *process; }

}  // namespace trireme

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  absl::StatusOr<std::unique_ptr<trireme::Process>> started =
      trireme::Process::Start(/*expected_ranks=*/0, trireme::Process::Signals::kFinishStep);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", std::string(started.status().message()).c_str());
    return 1;
  }
  trireme::process = started->get();
  trireme::InstallCpuAllocator();
  trireme::SetCpuThreads(trireme::process->recommended_threads());
  if (trireme::process->rank() > 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new trireme::FailurePrinter);
  }
  const int own = RUN_ALL_TESTS();
  int any = 0;
  MPI_Allreduce(&own, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return any;
}
