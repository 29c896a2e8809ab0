// launch/base/exit_code.h
// The registry of exit codes. A supervisor may act on them; they never change meaning.
#ifndef TRIREME_LAUNCH_BASE_EXIT_CODE_H_
#define TRIREME_LAUNCH_BASE_EXIT_CODE_H_

namespace trireme {

enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,       // A defect of ours, or an error nobody classified.
  kConfig = 2,         // Command line or configuration; nothing was started. Do not retry.
  kData = 3,           // A corpus, tokenizer or input file is missing, damaged or does not match.
  kCheckpoint = 4,     // A checkpoint is damaged, or the config changed in a way that alters numbers.
  kStorage = 5,        // Writing failed: disk full, no permission, input/output error.
  kWorldSize = 6,      // Started with another number of ranks than expected.
  kNonFinite = 7,      // Loss or gradient norm became NaN or infinite and the policy says stop.
  kHang = 8,           // The watchdog saw no progress within the configured time.
  kPeerLost = 9,       // Communication failed: another rank is gone, or called something else.
  kOutOfMemory = 10,   // Host or device memory exhausted.
  kCheckFailed = 11,   // --check-against found a difference.
  kPreempted = 75,     // Asked to stop by SIGTERM or SIGUSR1; saved; start again to resume.
  kInterrupted = 130,  // A second signal: stopped at once, the last checkpoint stands.
  kKilled = 137,       // What mpirun returns after a rank was killed with SIGKILL.
};

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_EXIT_CODE_H_
