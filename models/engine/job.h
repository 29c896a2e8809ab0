// models/engine/job.h
// A job from its start to its end: MPI, what each rank makes of its command line, what must be the same on all of them,
// the device, the mesh. Every verb that computes begins here, and errors come back as Status: only Main() ends the
// process.
#ifndef TRIREME_MODELS_ENGINE_JOB_H_
#define TRIREME_MODELS_ENGINE_JOB_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "configs/run_config.pb.h"
#include "launch/base/process.h"
#include "launch/base/status.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/operation_log.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// What a job computes on.
struct JobPlan {
  MeshShape mesh;
  LaunchConfig launch;   // says which device
  KernelConfig kernels;  // says what multiplies on CPUs
};

// What a verb brings to a job; called in this order.
struct JobSteps {
  // Each rank for itself, before any waits for another. An error of one rank is the job's.
  std::function<absl::StatusOr<JobPlan>(const Process& process)> plan;
  // Collective. Compares what all ranks must hold alike; an error is marked as agreed.
  std::function<absl::Status(ProcessGroup& world, at::Device device)> compare;
  // Collective. The work itself. An error is this rank's own, or marked as agreed (parallel/comm/agreement.h).
  std::function<absl::Status(Mesh& mesh)> run;
};

class Job {
 public:
  // Collective over the job: starts MPI (launch/base/process.h).
  static absl::StatusOr<std::unique_ptr<Job>> Start(int expected_ranks, Process::Signals signals);

  const Process& process() const { return *process_; }

  // Collective. One after the other, each with a mesh of its own that is gone afterwards. kPreempted is an orderly end.
  // After any other error the job is over: rank 0 has printed an error that all ranks have (IsTold()), and MPI stays as
  // it is, since the ranks may no longer meet; the process must end soon, by ExitNow() or FailProcess().
  absl::Status Run(const JobSteps& steps);

 private:
  explicit Job(std::unique_ptr<Process> process);
  absl::Status Connect(const JobSteps& steps, std::unique_ptr<Mesh>* mesh);

  std::unique_ptr<Process> process_;
  OperationLog start_log_;
  std::shared_ptr<ProcessGroup> world_;
};

// This rank's device as launch.device says; also sets up CPU memory, threads and what multiplies matrices. Job calls
// it; who starts without one calls it before the first tensor.
absl::StatusOr<at::Device> SetUpDevice(const LaunchConfig& config, const KernelConfig& kernels, const Process& process);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_JOB_H_
