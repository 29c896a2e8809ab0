#include "launch/base/process.h"
#include "parallel/comm/nccl_group.h"

namespace trireme {

std::shared_ptr<ProcessGroup> MakeNcclGroup(const std::string& name, MPI_Comm, int, OperationLog*) {
  FailProcess(Error(ExitCode::kConfig, "group ", name,
                    ": this binary was built without NCCL; build it with -DTRIREME_CUDA=ON or use launch.device: CPU"));
}

}  // namespace trireme
