// configs/config_loader.h
// From files and overrides to one RunConfig, with every mistake reported at its place.
#ifndef TRIREME_CONFIGS_CONFIG_LOADER_H_
#define TRIREME_CONFIGS_CONFIG_LOADER_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "launch/base/status.h"

namespace trireme {

// Merges textprotos left to right (repeated fields are replaced by a later file that sets them), then applies overrides
// in order:
//   parallel.tensor=2            sets a field by path (proto text syntax for the value; strings may go without quotes)
//   data.source+={path: "x"}     appends to a repeated field
//   parallel { tensor: 2 }       a fragment, merged
// Errors are kConfig and list every problem as FILE:LINE:COLUMN: what; unknown fields come with the nearest known name.
absl::StatusOr<RunConfig> LoadConfig(const std::vector<std::string>& files, const std::vector<std::string>& overrides);

// The textproto of a config, as printed, logged and stored.
std::string ConfigText(const RunConfig& config);

// What `trireme config [PATH]` prints: meaning, type, default and members of a field (or of all, with an empty path),
// from the comments in run_config.proto.
absl::StatusOr<std::string> ExplainField(const std::string& path);

// One line per field in which the two configs differ: "optimizer.adamw.learning_rate: 0.0003 -> 0.001".
std::vector<std::string> DiffConfigs(const RunConfig& before, const RunConfig& after);

}  // namespace trireme

#endif  // TRIREME_CONFIGS_CONFIG_LOADER_H_
