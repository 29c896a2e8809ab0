// models/spec/parameter_groups.h
// Parameters that are trained otherwise than the rest, chosen by name.
#ifndef TRIREME_MODELS_SPEC_PARAMETER_GROUPS_H_
#define TRIREME_MODELS_SPEC_PARAMETER_GROUPS_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/spec/decoder_spec.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// Sets spec->groups. A name that no parameter has, and groups that leave nothing to train, are added to `problems`.
void PutGroups(const OptimizerConfig& config, DecoderSpec* spec, std::vector<std::string>* problems);

// What the first group that names a parameter says of it: rate, decay, whether it is trained.
std::vector<ParameterSpec> InGroups(const DecoderSpec& spec, std::vector<ParameterSpec> parameters);

// Whether `name` is `pattern`, in which * stands for any characters.
bool MatchesPattern(const std::string& pattern, const std::string& name);

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_PARAMETER_GROUPS_H_
