#include "kernels/attention/attention.h"

namespace trireme {

std::vector<AttentionBackend> BuiltInAttentionBackends() { return {CpuAttention(), FlashAttention(), MathAttention()}; }

absl::Status SupportsAll(const AttentionBackend& backend, const std::vector<AttentionArguments>& examples) {
  for (const AttentionArguments& example : examples) RETURN_IF_ERROR(backend.supports(example));
  return absl::OkStatus();
}

absl::StatusOr<AttentionBackend> ChooseAttention(const std::vector<AttentionBackend>& backends, const std::string& name,
                                                 const std::vector<AttentionArguments>& examples) {
  std::string reasons;
  std::string names;
  for (const AttentionBackend& backend : backends) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", backend.name);
    if (name != "auto" && name != backend.name) continue;
    const absl::Status status = SupportsAll(backend, examples);
    if (status.ok()) return backend;
    absl::StrAppend(&reasons, "\n  ", backend.name, ": ", status.message());
  }
  if (reasons.empty())
    return Error(ExitCode::kConfig, "kernels.attention: no implementation is called \"", name, "\"; there are: auto, ",
                 names);
  return Error(ExitCode::kConfig, "kernels.attention: \"", name, "\" cannot be used here:", reasons);
}

}  // namespace trireme
