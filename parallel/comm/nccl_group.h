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
// on this machine's GPU number device_index modulo their number, on a high-priority stream of its own: an operation
// begins after what the current stream holds when it is called, and Work::Wait() makes the then current stream wait for
// it, not the host. Only Barrier() waits for the GPU.
//
// Starting an operation returns when NCCL has put it into the stream. The communicator is non-blocking, so the host
// waits for NCCL's own thread meanwhile: for some microseconds, but in the first operation between two ranks until they
// are connected, at most 10 minutes.
//
// Tensors are kept alive until Wait(). A thread of the group tells `log` when operations end and watches for errors. A
// failed operation, a lost peer or one that does not connect in time ends the process with ExitCode::kPeerLost; the
// communicator is left as it is, since kernels that an abort lets return would go on with what they left.
//
// Reduce-scatter of bfloat16 into float32 sends the parts as they are and adds them on the receiver, in float32.
// TRIREME_TEST_DELAY_STREAMS=SEED in the environment puts a random delay of up to 2 ms before each operation; results
// must not change. Ranks that share a GPU need an NCCL_HOSTID each, so that NCCL takes them for different machines.
std::shared_ptr<ProcessGroup> MakeNcclGroup(const std::string& name, MPI_Comm communicator, int device_index,
                                            OperationLog* log);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_NCCL_GROUP_H_
