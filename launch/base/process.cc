#include "launch/base/process.h"

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

#include "launch/base/log.h"

namespace trireme {
namespace {

std::atomic<int> stop_signals{0};

void OnStopSignal(int) {
  if (stop_signals.fetch_add(1) > 0) _exit(static_cast<int>(ExitCode::kInterrupted));
}
void OnInterrupt(int) { _exit(static_cast<int>(ExitCode::kInterrupted)); }

void Handle(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

// What takes a job down when one rank ends with an error. Read before MPI_Init, which may set such variables itself.
bool launcher_ends_jobs = true;

bool UnderMpirun() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr; }

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(int expected_ranks, Signals signals) {
  if (UnderMpirun()) prctl(PR_SET_PDEATHSIG, SIGKILL);
  launcher_ends_jobs = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    return Error(ExitCode::kInternal,
                 "start: MPI_Init failed; is Open MPI installed and is this machine's host name resolvable?");
  }
  std::unique_ptr<Process> process(new Process);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &process->rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &process->size_);
  SetLogRank(process->rank_, process->size_);
  MPI_Comm local;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, process->rank_, MPI_INFO_NULL, &local);
  MPI_Comm_rank(local, &process->local_rank_);
  MPI_Comm_size(local, &process->local_size_);
  MPI_Comm_free(&local);
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  process->host_ = host;
  if (signals == Signals::kFinishStep) {
    Handle(SIGTERM, &OnStopSignal);
    Handle(SIGUSR1, &OnStopSignal);
    Handle(SIGINT, &OnInterrupt);
  }
  if (expected_ranks > 0 && expected_ranks != process->size_) {
    const absl::Status status =
        Error(ExitCode::kWorldSize, "start: this run expects ", expected_ranks, " ranks but was started with ",
              process->size_, process->size_ == 1 && !UnderMpirun() ? " (not under mpirun)" : "",
              "; start it with `mpirun -np ", expected_ranks, "`, or change --ranks or launch.expected_ranks");
    if (process->size_ == 1) return status;
    // All ranks know it: one says so, and none ends before it has.
    if (process->rank_ == 0) WriteLog(Severity::kError, std::string(status.message()));
    MPI_Barrier(MPI_COMM_WORLD);
    process->Abandon();
    return MarkTold(status);
  }
  return process;
}

// Finalizing waits for all ranks: they would not learn of an exception here.
Process::~Process() {
  if (std::uncaught_exceptions() == 0 && !abandoned_) MPI_Finalize();
}

bool Process::stop_requested() const { return stop_signals.load() > 0; }

int Process::recommended_threads() const {
  cpu_set_t allowed;
  int processors = 1;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) processors = CPU_COUNT(&allowed);
  // Bound by mpirun to its own cores, a rank may use them all; otherwise the machine's ranks share.
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (const char* text = std::getenv("OMP_NUM_THREADS"); text != nullptr && std::atoi(text) > 0)
    return std::min(std::atoi(text), 4 * std::max(1, online));
  return processors < online ? processors : std::max(1, processors / local_size_);
}

absl::Status CheckAlone(const std::string& command) {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (size == nullptr || rank == nullptr || std::atoi(size) < 2) return absl::OkStatus();
  const absl::Status status = Error(ExitCode::kConfig, command, ": runs as one process, but mpirun started ", size,
                                    " of it; start it without mpirun");
  if (std::atoi(rank) == 0) return status;
  std::this_thread::sleep_for(std::chrono::seconds(2));
  return MarkTold(status);
}

void FailProcess(const absl::Status& status) {
  WriteLog(Severity::kError, std::string(status.message()));
  // mpirun ends the other ranks and returns this one's code; other launchers (srun) may leave them waiting for it.
  int started = 0, finalized = 0, main_thread = 0, size = 1;
  MPI_Initialized(&started);
  MPI_Finalized(&finalized);
  if (!launcher_ends_jobs && started != 0 && finalized == 0) {
    MPI_Is_thread_main(&main_thread);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    std::fflush(stdout);
    std::fflush(stderr);
    if (main_thread != 0 && size > 1) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCodeOf(status)));
  }
  ExitNow(ExitCodeOf(status));
}

void ExitNow(ExitCode code) {
  std::fflush(stdout);
  std::fflush(stderr);
  _exit(static_cast<int>(code));
}

}  // namespace trireme
