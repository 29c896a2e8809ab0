// models/spec/parameters.h
// The parameters of each unit, in the order of its buffer, under the names of Hugging Face's Llama checkpoints. What
// other families call them, and how they store them: models/spec/weight_table.h.
#ifndef TRIREME_MODELS_SPEC_PARAMETERS_H_
#define TRIREME_MODELS_SPEC_PARAMETERS_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/spec/decoder_spec.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

constexpr char kEmbeddingName[] = "model.embed_tokens";
constexpr char kPositionsName[] = "model.embed_positions";

// The adapters of one fused group of a block, or of the head. `base` and its members' rows are indices into the unit's
// own parameters, the others into UnitAdapters.parameters.
struct GroupAdapter {
  int base = -1;       // the group's first parameter
  int a = -1;          // the first of the stacked A
  int initial_a = -1;  // PiSSA: the first of the stacked A as training began
  struct Member {
    int base = -1, b = -1, magnitude = -1;
    int initial_b = -1;                // PiSSA
    int64_t first_rank = 0, rank = 0;  // rows of the stacked A; members of one module have the same
    double scale = 1;
  };
  std::vector<Member> members;
};

// Named as PEFT names them, without its prefix: "model.layers.0.self_attn.q_proj.lora_A.weight".
struct UnitAdapters {
  std::vector<ParameterSpec> parameters;
  std::vector<GroupAdapter> groups;
};
// base: a block's parameters or HeadParameters(). Those of experts lie apart from the others, as the experts do.
UnitAdapters MakeUnitAdapters(const DecoderSpec& spec, const std::vector<ParameterSpec>& base, bool experts = false);

// What an adapter can be put on, and what can be trained whole: names of modules, without ".weight". An untied head is
// both. Experts: the matrices of a layer's experts, as Transformers holds them in one tensor.
std::vector<std::string> LinearModules(const DecoderSpec& spec);
std::vector<std::string> ExpertModules(const DecoderSpec& spec);
std::vector<std::string> WholeModules(const DecoderSpec& spec);

// Sets spec->adapter; what does not fit is added to `problems`. seed: of dropout.
void PutAdapter(const AdapterConfig& config, uint64_t seed, DecoderSpec* spec, std::vector<std::string>* problems);

// A block's: the mixer's with its norms, then the feed-forward's. Matrices of a fused group are quantized all or none.
std::vector<ParameterSpec> BlockParameters(const DecoderSpec& spec, int64_t layer);
std::vector<ParameterSpec> EmbeddingParameters(const DecoderSpec& spec);  // the matrix
// What else stands before the first block: a learned table of positions, a norm; or nothing.
std::vector<ParameterSpec> EmbeddingExtras(const DecoderSpec& spec);
std::vector<ParameterSpec> HeadParameters(
    const DecoderSpec& spec);  // the norm, a bias; untied: then the head, the last

// The names of a block's norms, behind its prefix; "": there is none.
struct BlockNormNames {
  std::string before_mixer, after_mixer, before_feed_forward, after_feed_forward;
};
BlockNormNames NormNames(const LayerSpec& layer);
constexpr char kLastNorm[] = "model.norm";
constexpr char kEmbeddingNorm[] = "model.embed_norm";
std::string BlockName(int64_t layer);  // "model.layers.3"

// Whether a matrix of this name is quantized: a linear layer of a block that skip_modules does not name.
bool QuantizedByName(const std::string& name, const QuantizationConfig& quantization);

// What is wrong with quantizing these layers: groups that are named in part, names of nothing, matrices that files
// store in another way than whole.
void CheckQuantization(const DecoderSpec& spec, std::vector<std::string>* problems);

// Every parameter of the model, in its order, without those of adapters; and by units: embedding (with positions),
// blocks, head.
std::vector<std::vector<ParameterSpec>> UnitParameters(const DecoderSpec& spec);
std::vector<ParameterSpec> DecoderParameters(const DecoderSpec& spec);
std::vector<ParameterSpec> AdapterParameters(const DecoderSpec& spec);  // likewise
int64_t NumTrainableParameters(const DecoderSpec& spec);
int64_t Numel(const ParameterSpec& parameter);
int64_t NumParameters(const DecoderSpec& spec);  // elements; a tied matrix once

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_PARAMETERS_H_
