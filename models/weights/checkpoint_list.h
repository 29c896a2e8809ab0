// models/weights/checkpoint_list.h
// Which folders of a run are its checkpoints: the one place that knows their names.
#ifndef TRIREME_MODELS_WEIGHTS_CHECKPOINT_LIST_H_
#define TRIREME_MODELS_WEIGHTS_CHECKPOINT_LIST_H_

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// run_dir/checkpoints
std::string CheckpointsRoot(const std::string& run_dir);

// run_dir/checkpoints/step-00000100
std::string CheckpointFolder(const std::string& run_dir, int64_t step);

// The run_dir that a checkpoint's folder lies in, wherever that is now; "" where it lies in none.
std::string RunDirOf(const std::string& checkpoint);

// The step in a folder's name: 100 for "step-00000100". It is -1 for every name that CheckpointFolder() does not give,
// such as that of a copy somebody made.
int64_t StepOfCheckpoint(const std::string& name);

// The folders of all checkpoints, the latest step first; whether they are whole is not looked at.
std::vector<std::string> ListCheckpoints(const std::string& run_dir);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_CHECKPOINT_LIST_H_
