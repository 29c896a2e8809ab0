// trainer/checkpoint_list.h
// Which folders of a run are its checkpoints: the one place that knows their names.
#ifndef TRIREME_TRAINER_CHECKPOINT_LIST_H_
#define TRIREME_TRAINER_CHECKPOINT_LIST_H_

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// run_dir/checkpoints
std::string CheckpointsRoot(const std::string& run_dir);

// run_dir/checkpoints/step-00000100
std::string CheckpointFolder(const std::string& run_dir, int64_t step);

// Of a folder's name, "step-00000100": 100. -1 for every name that CheckpointFolder() does not give, such as that of a
// copy somebody made.
int64_t StepOfCheckpoint(const std::string& name);

// The folders of all checkpoints, the latest step first; whether they are whole is not looked at.
std::vector<std::string> ListCheckpoints(const std::string& run_dir);

}  // namespace trireme

#endif  // TRIREME_TRAINER_CHECKPOINT_LIST_H_
