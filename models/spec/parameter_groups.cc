#include "models/spec/parameter_groups.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

#include "models/spec/parameters.h"

namespace trireme {
namespace {

// A few names of trained parameters, for whoever named none.
std::string Examples(const std::vector<ParameterSpec>& all) {
  constexpr size_t kCount = 3;
  std::string text;
  size_t count = 0;
  for (const ParameterSpec& spec : all) {
    if (!spec.trainable || count == kCount) continue;
    absl::StrAppend(&text, count++ == 0 ? "" : ", ", spec.name);
  }
  return text;
}

}  // namespace

bool MatchesPattern(const std::string& pattern, const std::string& name) {
  // Where the last star stands and what it began with; it takes one character more whenever the rest does not fit.
  size_t p = 0, n = 0, star = std::string::npos, resumed = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resumed = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string::npos) {
      p = star + 1;
      n = ++resumed;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::vector<ParameterSpec> InGroups(const DecoderSpec& spec, std::vector<ParameterSpec> parameters) {
  for (ParameterSpec& parameter : parameters) {
    const auto named = [&](const ParameterGroup& group) {
      return std::any_of(group.names().begin(), group.names().end(),
                         [&](const std::string& pattern) { return MatchesPattern(pattern, parameter.name); });
    };
    const auto group = std::find_if(spec.groups.begin(), spec.groups.end(), named);
    if (group == spec.groups.end()) continue;
    parameter.rate *= group->learning_rate_factor();
    if (group->has_weight_decay()) parameter.weight_decay = group->weight_decay();
    if (group->frozen()) parameter.trainable = false;
  }
  return parameters;
}

void PutGroups(const OptimizerConfig& config, DecoderSpec* spec, std::vector<std::string>* problems) {
  if (config.groups().empty()) return;
  std::vector<ParameterSpec> all = DecoderParameters(*spec);
  for (ParameterSpec& parameter : AdapterParameters(*spec)) all.push_back(std::move(parameter));
  for (const ParameterGroup& group : config.groups()) {
    for (const std::string& pattern : group.names()) {
      const bool found = std::any_of(all.begin(), all.end(), [&](const ParameterSpec& parameter) {
        return MatchesPattern(pattern, parameter.name) && parameter.trainable;
      });
      if (!found)
        problems->push_back(absl::StrCat("optimizer.groups.names: \"", pattern,
                                         "\" names no parameter that is trained; there are such as ", Examples(all),
                                         " (* stands for any characters)"));
    }
  }
  spec->groups.assign(config.groups().begin(), config.groups().end());
  if (NumTrainableParameters(*spec) == 0)
    problems->push_back("optimizer.groups.frozen: nothing is left to train; leave some parameters out of the groups");
}

}  // namespace trireme
