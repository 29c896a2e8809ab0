#include "models/engine/job.h"

#include <utility>
#include <vector>

#include "kernels/base/cpu_allocator.h"
#include "kernels/base/device.h"
#include "kernels/base/thread_pool.h"
#include "kernels/matrix/gemm.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/mpi_group.h"

namespace trireme {
namespace {

// Objects whose ends are collective, when the ranks may no longer meet.
template <typename T>
void KeepForever(T object) {
  static auto* kept = new std::vector<T>;
  kept->push_back(std::move(object));
}

}  // namespace

Job::Job(std::unique_ptr<Process> process) : process_(std::move(process)), world_(MakeWorldGroup(&start_log_)) {}

absl::StatusOr<std::unique_ptr<Job>> Job::Start(int expected_ranks, Process::Signals signals) {
  ASSIGN_OR_RETURN(std::unique_ptr<Process> process, Process::Start(expected_ranks, signals));
  return std::unique_ptr<Job>(new Job(std::move(process)));
}

absl::Status Job::Connect(const JobSteps& steps, std::unique_ptr<Mesh>* mesh) {
  absl::StatusOr<JobPlan> plan = steps.plan(*process_);
  absl::StatusOr<at::Device> device =
      plan.ok() ? SetUpDevice(plan->launch, plan->kernels, *process_) : absl::StatusOr<at::Device>(plan.status());
  RETURN_IF_ERROR(Agree(*world_, device.status()));
  RETURN_IF_ERROR(steps.compare(*world_, *device));
  absl::StatusOr<std::unique_ptr<Mesh>> created = Mesh::Create(*process_, plan->mesh, *device);
  RETURN_IF_ERROR(Agree(*world_, created.status()));
  *mesh = *std::move(created);
  return absl::OkStatus();
}

absl::Status Job::Run(const JobSteps& steps) {
  std::unique_ptr<Mesh> mesh;
  absl::Status status = Connect(steps, &mesh);
  if (status.ok()) status = steps.run(*mesh);
  if (status.ok() || ExitCodeOf(status) == ExitCode::kPreempted) return status;
  if (IsAgreed(status)) status = TellTogether(*world_, status);
  KeepForever(std::move(mesh));
  KeepForever(std::move(world_));
  process_->Abandon();
  return status;
}

absl::StatusOr<at::Device> SetUpDevice(const LaunchConfig& config, const KernelConfig& kernels,
                                       const Process& process) {
  InstallCpuAllocator();
  SetCpuThreads(process.recommended_threads());
  RETURN_IF_ERROR(UseProducts(kernels.products() == KernelConfig::MKL        ? ProductLibrary::kMkl
                              : kernels.products() == KernelConfig::OPENBLAS ? ProductLibrary::kOpenBlas
                                                                             : ProductLibrary::kOwn));
  if (config.device() == LaunchConfig::CPU) return at::Device(at::kCPU);
  ASSIGN_OR_RETURN(const int gpus, CudaDeviceCount());
  if (gpus == 0 && config.device() == LaunchConfig::AUTO) return at::Device(at::kCPU);
  return UseCudaDevice(process.local_rank());
}

}  // namespace trireme
