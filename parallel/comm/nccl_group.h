// parallel/comm/nccl_group.h
// Process groups on GPU tensors, over NCCL.
#ifndef TRIREME_PARALLEL_COMM_NCCL_GROUP_H_
#define TRIREME_PARALLEL_COMM_NCCL_GROUP_H_

#include <mpi.h>

#include <memory>
#include <string>

#include "parallel/comm/process_group.h"

namespace trireme {

// Collective over `communicator`, which it takes ownership of and uses only to spread NCCL's unique id. The group works
// on this machine's GPU number local_rank modulo their number, on a high-priority stream of its own: an operation
// begins after what the current stream holds when it is called, and Work::Wait() makes the then current stream wait for
// it, so the host never blocks. Tensors are kept alive until Wait(). A thread of the group tells `log` when operations
// end and watches for errors; a failed operation or lost peer, or a peer that does not come within the time limit of
// the connection (10 minutes), aborts NCCL and ends the process with ExitCode::kPeerLost. Reduce-scatter of bfloat16
// into float32 converts its input first: sums are in float32. TRIREME_TEST_DELAY_STREAMS=SEED in the environment puts a
// random delay of up to 2 ms before each operation; results must not change. Ranks that share a GPU need an NCCL_HOSTID
// each, so that NCCL takes them for different machines.
std::shared_ptr<ProcessGroup> MakeNcclGroup(const std::string& name, MPI_Comm communicator, int local_rank,
                                            OperationLog* log);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_NCCL_GROUP_H_
