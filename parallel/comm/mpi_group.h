// parallel/comm/mpi_group.h
// Process groups on CPU tensors: over MPI, and of one rank.
#ifndef TRIREME_PARALLEL_COMM_MPI_GROUP_H_
#define TRIREME_PARALLEL_COMM_MPI_GROUP_H_

#include <mpi.h>

#include <memory>
#include <string>

#include "parallel/comm/process_group.h"

namespace trireme {

// Takes ownership of `communicator`. All calls from the thread that initialized MPI.
std::shared_ptr<ProcessGroup> MakeMpiGroup(const std::string& name, MPI_Comm communicator, OperationLog* log);

// All ranks of the job, for CPU tensors. Collective over the job.
std::shared_ptr<ProcessGroup> MakeWorldGroup(OperationLog* log);

// A group of one rank, on any device.
std::shared_ptr<ProcessGroup> MakeSelfGroup(const std::string& name);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_MPI_GROUP_H_
