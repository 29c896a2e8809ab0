// models/weights/checkpoint_manifest.h
// manifest.pb of a checkpoint, read without trust and sealed by a digest of itself.
#ifndef TRIREME_MODELS_WEIGHTS_CHECKPOINT_MANIFEST_H_
#define TRIREME_MODELS_WEIGHTS_CHECKPOINT_MANIFEST_H_

#include <functional>
#include <string>

#include "launch/base/status.h"
#include "models/weights/checkpoint.pb.h"

namespace trireme {

// The version of the format that is written. Larger ones are refused.
inline constexpr int kCheckpointVersion = 1;

// Reads and checks the manifest of a checkpoint folder: it parses, and every file is there with its size; verify: and
// its digest, for files whose index modulo `ranks` is `rank`. Errors are kCheckpoint. alive: called now and then
// meanwhile; may be empty.
absl::StatusOr<CheckpointManifest> ReadCheckpointManifest(const std::string& folder, bool verify, int rank, int ranks,
                                                          const std::function<void()>& alive = nullptr);

// A manifest as its file holds it: with a digest of itself at the end. (Those of older versions have none.)
std::string SealManifest(CheckpointManifest manifest);

// The step folder that a run_dir (its newest checkpoint that is whole) or a step folder stands for; "" for what is
// neither.
absl::StatusOr<std::string> CheckpointOf(const std::string& source);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_CHECKPOINT_MANIFEST_H_
