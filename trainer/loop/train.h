// trainer/loop/train.h
// The pretraining job: everything between mpirun and the last checkpoint.
#ifndef TRIREME_TRAINER_LOOP_TRAIN_H_
#define TRIREME_TRAINER_LOOP_TRAIN_H_

#include <string>
#include <vector>

#include "launch/base/process.h"
#include "models/engine/extensions.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

struct TrainOptions {
  std::vector<std::string> configs;    // files, merged left to right
  std::vector<std::string> overrides;  // --set
  int expected_ranks = 0;              // --ranks; 0: launch.expected_ranks, if set
  bool allow_change = false;           // resume although numbers will change
  std::string check_against;           // run_dir of another run; "": none
  double check_tolerance = 1e-4;       // relative
  int64_t stop_at = 0;                 // end after this step as if preempted; 0: run to the end
};

// Starts MPI, trains, and ends the process on every error. Returns kPreempted when asked to stop early.
absl::Status Train(const TrainOptions& options, const Extensions& extensions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_TRAIN_H_
