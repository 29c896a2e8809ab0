// trainer/recipe/same_everywhere.h
// What every rank of a job must hold alike before its first step. A rank trusts no copy of its own: ranks compare.
#ifndef TRIREME_TRAINER_RECIPE_SAME_EVERYWHERE_H_
#define TRIREME_TRAINER_RECIPE_SAME_EVERYWHERE_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "configs/run_config.pb.h"
#include "launch/base/file.h"
#include "launch/base/status.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// Something that all ranks must have the same of.
struct SharedFact {
  std::string name;   // "the program's version", "data.source[0]"
  std::string value;  // what the error shows of it: the value itself, or a digest
  ExitCode code = ExitCode::kConfig;
};

// What every verb compares: the program and the kind of device.
std::vector<SharedFact> ProgramFacts(at::Device device);

// Collective. An agreed error names the first fact that differs, with each value and the ranks that hold it. Every rank
// brings the same names in the same order.
absl::Status CompareFacts(ProcessGroup& world, const std::vector<SharedFact>& facts);

// Collective, kConfig. Names every field in which a rank's resolved config differs from rank 0's. Left out is what may
// differ: paths, whose content the ranks compare instead (ContentFacts); run_dir (CheckSharedFolder); what rank 0 alone
// writes; and what each rank does for itself (prefetching, checking digests).
absl::Status CompareConfigs(ProcessGroup& world, const RunConfig& config);

// Facts (kData) of contents, given by name and digest (or what else tells them apart).
std::vector<SharedFact> ContentFacts(const std::vector<std::pair<std::string, Digest>>& contents);

// Collective. The digest of something that takes a while to read, by ranks that all have a `path` of theirs: of ranks
// that see the same file on the same host only the lowest reads it, and all get its digest or its error.
absl::StatusOr<Digest> DigestOncePerMachine(ProcessGroup& world, const std::string& host, const std::string& path,
                                            const std::function<absl::StatusOr<Digest>()>& read);

// The digest, or what went wrong, so that ranks can compare either.
std::string DigestOrError(const absl::StatusOr<Digest>& digest);

// Collective. kConfig when some rank does not see in `folder` what rank 0 writes there: the machines do not share it.
// `field` names the setting.
absl::Status CheckSharedFolder(ProcessGroup& world, const std::string& field, const std::string& folder,
                               const std::string& host);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_SAME_EVERYWHERE_H_
