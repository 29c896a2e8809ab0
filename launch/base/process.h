// launch/base/process.h
// One MPI rank: who it is, when it should stop, how it ends.
#ifndef TRIREME_LAUNCH_BASE_PROCESS_H_
#define TRIREME_LAUNCH_BASE_PROCESS_H_

#include <memory>
#include <string>

#include "launch/base/status.h"

namespace trireme {

// Owns MPI: initialized here (FUNNELED: MPI is called from this thread only), finalized by the destructor. One per
// process.
class Process {
 public:
  // Collective over the job. expected_ranks 0: any number; otherwise another number of ranks is kWorldSize, so that a
  // job silently started as 1 of N fails at once. kFinishStep installs handlers of SIGTERM, SIGUSR1 (stop after this
  // step; a second one exits at once, kInterrupted) and SIGINT (exits at once); without, signals end the process as
  // they do. If mpirun dies, so does this process.
  enum class Signals { kFinishStep, kDefault };
  static absl::StatusOr<std::unique_ptr<Process>> Start(int expected_ranks, Signals signals);
  ~Process();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this machine
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }

  // The destructor leaves MPI as it is: to be called when ranks may no longer meet and the process ends soon.
  void Abandon() { abandoned_ = true; }

  // True after a first SIGTERM or SIGUSR1 to this rank. Ranks must agree before acting on it.
  bool stop_requested() const;

  // CPU threads this rank should use: OMP_NUM_THREADS if set (at most four for each processor), else its share of the
  // processors it may run on.
  int recommended_threads() const;

 private:
  Process() = default;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::string host_;
  bool abandoned_ = false;
};

// kConfig where mpirun started several of a `command` that runs as one process and starts no MPI. One of them returns
// at once, the others a moment later, so that its message is out before mpirun takes them all down.
absl::Status CheckAlone(const std::string& command);

// Prints the error and ends the process with its code, without waiting for other ranks: mpirun then takes the job down
// and returns that code. For use once MPI runs.
[[noreturn]] void FailProcess(const absl::Status& status);

// Ends the process at once with `code`, flushing output, running no destructors.
[[noreturn]] void ExitNow(ExitCode code);

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_PROCESS_H_
