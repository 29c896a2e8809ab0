// models/families/mixtures/mixture.h
// What families with experts share.
#ifndef TRIREME_MODELS_FAMILIES_MIXTURES_MIXTURE_H_
#define TRIREME_MODELS_FAMILIES_MIXTURES_MIXTURE_H_

#include <functional>
#include <string>
#include <vector>

#include "models/parts/draft.h"
#include "models/parts/experts.h"
#include "models/spec/family.h"

namespace trireme {

// What the configuration says of experts in the same words in all families.
ExpertsSettings ExpertsOf(const ModelConfig& config, const DecoderDraft& draft);

// The decoder with experts in all layers but those for which `dense` holds, which keep the draft's feed-forward.
DecoderSpec BuildExperts(DecoderDraft draft, const ExpertsSettings& experts, const std::function<bool(int64_t)>& dense,
                         std::vector<std::string>* problems);
bool AllSparse(int64_t layer);

inline constexpr char kOurRouter[] = "model.layers.*.mlp.gate.weight",
                      kOurGateUp[] = "model.layers.*.mlp.experts.gate_up_proj.weight",
                      kOurDown[] = "model.layers.*.mlp.experts.down_proj.weight";

// Experts one by one, as published files of most families have them.
std::vector<WeightRule> OneByOne();
// All experts of a layer in one tensor, as Transformers 5 holds them and some files have them.
std::vector<WeightRule> AllInOne();

// Reads the number of experts by any of the names that circulate.
void ReadNumExperts(JsonReader& reader, HfConfig* config);
void WriteLocalExperts(const ModelConfig& model, nlohmann::ordered_json* json);  // num_local_experts

}  // namespace trireme

#endif  // TRIREME_MODELS_FAMILIES_MIXTURES_MIXTURE_H_
