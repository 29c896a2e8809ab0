// models/spec/adapter_spec.h
// Which modules of a decoder get a low-rank adapter, of which rank and scale. Follows PEFT's rules for names
// (peft/tuners/tuners_utils.py), but a name that matches nothing is an error.
#ifndef TRIREME_MODELS_SPEC_ADAPTER_SPEC_H_
#define TRIREME_MODELS_SPEC_ADAPTER_SPEC_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace trireme {

class AdapterConfig;  // configs/run_config.proto

constexpr char kHeadModule[] = "lm_head";

// The path of a parameter's module: "model.layers.0.self_attn.q_proj" for that of
// "model.layers.0.self_attn.q_proj.weight".
std::string ModuleOf(const std::string& parameter);
// Whether `name` is the module's name or the last parts of it, as target_modules and modules_to_save mean it.
bool NamesModule(const std::string& name, const std::string& module);
std::string LastPart(const std::string& module);
// "X.lora_A.weight" -> "X.initial_lora_A.weight", what PiSSA calls that factor as training began; "" for other names.
std::string InitialFactor(const std::string& factor);

struct ModuleAdapter {
  int64_t rank = 0;
  double alpha = 0;
  double scale = 0;  // alpha / rank, or with rsLoRA alpha / sqrt(rank)
};

struct AdapterSpec {
  std::map<std::string, ModuleAdapter> modules;  // by the module's full name: "model.layers.0.self_attn.q_proj"
  std::set<std::string> experts;                 // those of `modules` that are the experts' matrices of a layer
  std::set<std::string> saved_modules;           // trained whole: "model.embed_tokens", "lm_head"
  // What A and B are as training begins: B zero and A uniform as PEFT has it, or normal; or the principal factors.
  enum Start { kUniform, kGaussian, kPissa } start = kUniform;
  bool dora = false;   // magnitudes are trained apart (arXiv 2402.09353)
  double dropout = 0;  // of what goes into A
  double b_rate = 1;   // multiplies the learning rate of B (LoRA+, arXiv 2402.12354)
  uint64_t seed = 0;   // of dropout

  // The module that a parameter belongs to where it is not called NAME.weight for it: several may be one module.
  std::map<std::string, std::string> module_of;

  std::string ModuleOfParameter(const std::string& parameter) const;
  // The adapter of the module that has the parameter; null where it has none.
  const ModuleAdapter* Find(const std::string& parameter) const;
};

// `linears`: the modules that can have adapters, `experts`: the experts' matrices, which can too, `others`: those that
// can be saved whole (embedding, untied head, routers). Adds to `problems` what does not fit, each naming its field. Of
// an adapter that exists already (config.from) a name may match nothing: its tensors say what it has.
AdapterSpec ResolveAdapter(const AdapterConfig& config, const std::vector<std::string>& linears,
                           const std::vector<std::string>& experts, const std::vector<std::string>& others,
                           std::vector<std::string>* problems);

// `config`, whose adapter `spec` is, by nothing but its modules' own names.
AdapterConfig ExactConfig(AdapterConfig config, const AdapterSpec& spec);

// Whether the expression matches all of `text`; a problem when it is no expression.
bool FullyMatches(const std::string& expression, const std::string& text, std::string* problem);

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_ADAPTER_SPEC_H_
