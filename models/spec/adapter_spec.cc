#define PCRE2_CODE_UNIT_WIDTH 8
#include "models/spec/adapter_spec.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <pcre2.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "configs/run_config.pb.h"
#include "configs/suggest.h"

namespace trireme {
namespace {

constexpr int32_t kMaxRank = 65536;
constexpr uint32_t kMatchLimit = 1'000'000;  // steps: names are short, so only a runaway expression takes more

using Code = std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>;

std::vector<std::string> LastParts(const std::vector<std::string>& modules) {
  std::set<std::string> parts;
  for (const std::string& module : modules) parts.insert(LastPart(module));
  return {parts.begin(), parts.end()};
}

void CheckNumbers(const AdapterConfig& c, std::vector<std::string>* problems) {
  const auto rank = [&](const std::string& field, int32_t r) {
    if (r < 1 || r > kMaxRank)
      problems->push_back(absl::StrCat(field, ": is ", r, "; give a rank from 1 to ", kMaxRank, ", say 16"));
  };
  const auto alpha = [&](const std::string& field, double a) {
    if (!(a > 0) || !std::isfinite(a))
      problems->push_back(absl::StrCat(field, ": is ", a, "; give a positive number, say twice the rank"));
  };
  rank("adapter.r", c.r());
  alpha("adapter.lora_alpha", c.lora_alpha());
  for (const auto& [key, r] : c.rank_pattern()) rank(absl::StrCat("adapter.rank_pattern[\"", key, "\"]"), r);
  for (const auto& [key, a] : c.alpha_pattern()) alpha(absl::StrCat("adapter.alpha_pattern[\"", key, "\"]"), a);
  if (!(c.lora_dropout() >= 0 && c.lora_dropout() < 1))
    problems->push_back(absl::StrCat("adapter.lora_dropout: is ", c.lora_dropout(), "; must be in [0, 1)"));
  if (c.init_lora_weights() == AdapterConfig::PISSA && c.use_dora())
    problems->push_back(
        "adapter.use_dora: is set beside init_lora_weights PISSA, which moves a part of W into the adapter; choose "
        "one");
  if (!(c.loraplus_lr_ratio() > 0) || !std::isfinite(c.loraplus_lr_ratio()))
    problems->push_back(
        absl::StrCat("adapter.loraplus_lr_ratio: is ", c.loraplus_lr_ratio(), "; give a positive number, say 16"));
}

// Of `experts` those that target_parameters names.
std::set<std::string> ExpertTargets(const AdapterConfig& c, const std::vector<std::string>& experts,
                                    std::vector<std::string>* problems) {
  std::set<std::string> found;
  for (const std::string& name : c.target_parameters()) {
    const size_t before = found.size();
    for (const std::string& module : experts) {
      if (NamesModule(name, module)) found.insert(module);
    }
    if (found.size() == before && !c.has_from())
      problems->push_back(absl::StrCat("adapter.target_parameters: no experts are called \"", name, "\"",
                                       Suggestion(name, LastParts(experts))));
  }
  if (found.empty()) return found;
  for (const auto& [set, field] : {std::pair(c.use_dora(), "use_dora"), std::pair(c.lora_dropout() > 0, "lora_dropout"),
                                   std::pair(c.init_lora_weights() == AdapterConfig::PISSA, "init_lora_weights")}) {
    if (set)
      problems->push_back(absl::StrCat("adapter.", field, ": DoRA, PiSSA and dropout know no adapters of experts; ",
                                       "leave it or adapter.target_parameters out"));
  }
  return found;
}

// The modules of `linears` that the config targets.
std::vector<std::string> Targets(const AdapterConfig& c, const std::vector<std::string>& linears,
                                 const std::vector<std::string>& experts, const std::vector<std::string>& others,
                                 std::vector<std::string>* problems) {
  if (!c.target_modules_regex().empty()) {
    if (c.target_modules_size() > 0) {
      problems->push_back("adapter.target_modules_regex: is set beside adapter.target_modules; remove one");
      return {};
    }
    std::vector<std::string> found;
    std::string problem;
    for (const std::string& module : linears) {
      if (FullyMatches(c.target_modules_regex(), module, &problem)) found.push_back(module);
    }
    if (!problem.empty()) {
      problems->push_back(absl::StrCat("adapter.target_modules_regex: ", problem));
    } else if (found.empty()) {
      problems->push_back(absl::StrCat("adapter.target_modules_regex: \"", c.target_modules_regex(),
                                       "\" matches no linear layer; it must match a whole name such as \"",
                                       linears.empty() ? "" : linears.front(), "\""));
    }
    return found;
  }
  if (c.target_modules().empty() && c.target_parameters_size() > 0) return {};
  const bool all = c.target_modules().empty() ||
                   std::count(c.target_modules().begin(), c.target_modules().end(), std::string("all-linear")) > 0;
  if (all && c.target_modules_size() > 1)
    problems->push_back("adapter.target_modules: \"all-linear\" stands beside other names; leave either out");
  std::vector<std::string> found;
  if (all) {  // as PEFT understands it
    std::copy_if(linears.begin(), linears.end(), std::back_inserter(found),
                 [](const std::string& module) { return module != kHeadModule; });
    return found;
  }
  for (const std::string& name : c.target_modules()) {
    const auto matches = [&](const std::string& module) { return NamesModule(name, module); };
    if (c.has_from() || std::any_of(linears.begin(), linears.end(), matches)) continue;
    if (std::any_of(others.begin(), others.end(), matches)) {
      problems->push_back(absl::StrCat("adapter.target_modules: \"", name,
                                       "\" is an embedding, which gets no low-rank adapter; name it in "
                                       "adapter.modules_to_save to train it whole"));
    } else if (name == kHeadModule) {
      problems->push_back(
          "adapter.target_modules: \"lm_head\" is the embedding here (tied weights), and merged it would be another; "
          "name \"embed_tokens\" in adapter.modules_to_save to train both whole");
    } else {
      const bool of_experts = !experts.empty() && (name == "gate_proj" || name == "up_proj" || name == "down_proj" ||
                                                   name == "w1" || name == "w2" || name == "w3");
      problems->push_back(absl::StrCat(
          "adapter.target_modules: no linear layer is called \"", name, "\"",
          of_experts ? absl::StrCat("; experts are adapted by adapter.target_parameters, say \"", experts.front(), "\"")
                     : Suggestion(name, LastParts(linears))));
    }
  }
  for (const std::string& module : linears) {
    if (std::any_of(c.target_modules().begin(), c.target_modules().end(),
                    [&](const std::string& name) { return NamesModule(name, module); }))
      found.push_back(module);
  }
  return found;
}

// The pattern's value for the module, if a key of it matches. A key that matches no target is a problem.
template <typename T>
class Pattern {
 public:
  Pattern(const char* field, const google::protobuf::Map<std::string, T>& pattern, std::vector<std::string>* problems)
      : field_(field), pattern_(pattern.begin(), pattern.end()), problems_(problems) {}

  T Get(const std::string& module, T otherwise) {
    for (const auto& [key, value] : pattern_) {
      std::string problem;
      if (FullyMatches(absl::StrCat("(.*\\.)?(", key, ")"), module, &problem)) {
        used_.insert(key);
        return value;
      }
    }
    return otherwise;
  }
  void ReportUnused() {
    for (const auto& [key, value] : pattern_) {
      if (used_.count(key) > 0) continue;
      std::string problem;
      FullyMatches(key, "", &problem);
      problems_->push_back(absl::StrCat("adapter.", field_, "[\"", key, "\"]: ",
                                        problem.empty() ? "matches none of the layers that get an adapter" : problem));
    }
  }

 private:
  const char* field_;
  std::map<std::string, T> pattern_;
  std::set<std::string> used_;
  std::vector<std::string>* problems_;
};

}  // namespace

std::string ModuleOf(const std::string& parameter) { return std::string(absl::StripSuffix(parameter, ".weight")); }

bool NamesModule(const std::string& name, const std::string& module) {
  return module == name || absl::EndsWith(module, "." + name);
}

std::string InitialFactor(const std::string& factor) {
  const size_t dot = factor.rfind(".lora_");
  return dot == std::string::npos ? "" : absl::StrCat(factor.substr(0, dot), ".initial_", factor.substr(dot + 1));
}

std::string LastPart(const std::string& module) { return module.substr(module.rfind('.') + 1); }

bool FullyMatches(const std::string& expression, const std::string& text, std::string* problem) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &offset, nullptr),
                  &pcre2_code_free);
  if (code == nullptr) {
    PCRE2_UCHAR message[256] = {0};
    pcre2_get_error_message(error, message, sizeof(message));
    *problem = absl::StrCat("\"", expression, "\" is no regular expression: ", reinterpret_cast<char*>(message),
                            " at character ", offset);
    return false;
  }
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code.get(), nullptr), &pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const int result =
      pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match.get(), context.get());
  if (result < 0 && result != PCRE2_ERROR_NOMATCH)
    *problem = absl::StrCat("\"", expression, "\" takes too long to match; simplify it");
  return result >= 0;
}

AdapterConfig ExactConfig(AdapterConfig config, const AdapterSpec& spec) {
  config.clear_target_modules_regex();
  config.clear_exclude_modules();
  config.clear_target_modules();
  config.clear_target_parameters();
  config.clear_rank_pattern();
  config.clear_alpha_pattern();
  for (const auto& [module, adapter] : spec.modules) {
    spec.experts.count(module) > 0 ? config.add_target_parameters(module) : config.add_target_modules(module);
    if (adapter.rank != config.r()) (*config.mutable_rank_pattern())[module] = static_cast<int32_t>(adapter.rank);
    if (adapter.alpha != config.lora_alpha()) (*config.mutable_alpha_pattern())[module] = adapter.alpha;
  }
  return config;
}

std::string AdapterSpec::ModuleOfParameter(const std::string& parameter) const {
  const auto found = module_of.find(parameter);
  return found != module_of.end() ? found->second : ModuleOf(parameter);
}

const ModuleAdapter* AdapterSpec::Find(const std::string& parameter) const {
  const auto found = modules.find(ModuleOfParameter(parameter));
  return found == modules.end() ? nullptr : &found->second;
}

AdapterSpec ResolveAdapter(const AdapterConfig& c, const std::vector<std::string>& linears,
                           const std::vector<std::string>& experts, const std::vector<std::string>& others,
                           std::vector<std::string>* problems) {
  AdapterSpec spec;
  spec.start = c.init_lora_weights() == AdapterConfig::PISSA      ? AdapterSpec::kPissa
               : c.init_lora_weights() == AdapterConfig::GAUSSIAN ? AdapterSpec::kGaussian
                                                                  : AdapterSpec::kUniform;
  spec.dora = c.use_dora();
  spec.dropout = c.lora_dropout();
  spec.b_rate = c.loraplus_lr_ratio();
  const size_t problems_before = problems->size();
  CheckNumbers(c, problems);
  std::vector<std::string> targets = Targets(c, linears, experts, others, problems);
  spec.experts = ExpertTargets(c, experts, problems);
  targets.insert(targets.end(), spec.experts.begin(), spec.experts.end());
  for (const std::string& name : c.exclude_modules()) {
    const size_t before = targets.size();
    targets.erase(std::remove_if(targets.begin(), targets.end(),
                                 [&](const std::string& module) { return NamesModule(name, module); }),
                  targets.end());
    if (targets.size() == before && !c.has_from())
      problems->push_back(absl::StrCat("adapter.exclude_modules: \"", name,
                                       "\" is none of the layers that would get an adapter",
                                       Suggestion(name, LastParts(targets))));
  }
  Pattern<int32_t> ranks("rank_pattern", c.rank_pattern(), problems);
  Pattern<double> alphas("alpha_pattern", c.alpha_pattern(), problems);
  for (const std::string& module : targets) {
    ModuleAdapter adapter;
    adapter.rank = ranks.Get(module, c.r());
    adapter.alpha = alphas.Get(module, c.lora_alpha());
    const double rank = static_cast<double>(adapter.rank);
    adapter.scale = adapter.alpha / (c.use_rslora() ? std::sqrt(rank) : rank);
    spec.modules.emplace(module, adapter);
  }
  if (!c.has_from()) {
    ranks.ReportUnused();
    alphas.ReportUnused();
  }
  if (spec.modules.count(kHeadModule) > 0) {
    for (const auto& [set, field] : {std::pair(c.use_dora(), "use_dora"),
                                     std::pair(c.init_lora_weights() == AdapterConfig::PISSA, "init_lora_weights")}) {
      if (set)
        problems->push_back(absl::StrCat("adapter.", field,
                                         ": DoRA and PiSSA know no adapter on the head; leave it or "
                                         "the target \"lm_head\" out"));
    }
  }
  for (const std::string& name : c.modules_to_save()) {
    const auto found = std::find_if(others.begin(), others.end(),
                                    [&](const std::string& module) { return NamesModule(name, module); });
    if (found == others.end()) {
      problems->push_back(absl::StrCat("adapter.modules_to_save: nothing is called \"", name,
                                       "\" that can be trained whole", Suggestion(name, LastParts(others))));
    } else {
      spec.saved_modules.insert(*found);
      if (spec.modules.count(*found) > 0)
        problems->push_back(
            absl::StrCat("adapter.modules_to_save: \"", name, "\" is among adapter.target_modules too; choose one"));
    }
  }
  if (spec.modules.empty() && spec.saved_modules.empty() && problems->size() == problems_before)
    problems->push_back(
        "adapter: none of the model's layers is left to train; look at adapter.target_modules and "
        "adapter.exclude_modules");
  return spec;
}

}  // namespace trireme
