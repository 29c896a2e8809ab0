// trainer/recipe/start_up.h
// What a rank sets up of its machine before the first tensor.
#ifndef TRIREME_TRAINER_RECIPE_START_UP_H_
#define TRIREME_TRAINER_RECIPE_START_UP_H_

#include <ATen/core/Tensor.h>

#include "configs/run_config.pb.h"
#include "launch/base/process.h"
#include "launch/base/status.h"

namespace trireme {

// This rank's device as launch.device says; also sets up CPU memory, threads and the library of matrix products. Call
// before the first tensor.
absl::StatusOr<at::Device> SetUpDevice(const LaunchConfig& config, const Process& process);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_START_UP_H_
