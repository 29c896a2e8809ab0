#include "models/spec/parameters.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "models/spec/parameter_groups.h"
#include "models/spec/weight_table.h"

namespace trireme {
namespace {

ParameterSpec Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation, Placement placement) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {rows, columns};
  spec.standard_deviation = deviation;
  spec.placement = placement;
  return spec;
}

ParameterSpec Vector(const std::string& name, int64_t width, Initialization initialization,
                     Placement placement = Placement::kReplicated) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {width};
  spec.initialization = initialization;
  spec.decay = false;
  spec.placement = placement;
  return spec;
}

// Under an adapter only what it names is trained; groups may freeze more.
std::vector<ParameterSpec> Frozen(const DecoderSpec& s, std::vector<ParameterSpec> parameters) {
  if (s.adapter == nullptr) return InGroups(s, std::move(parameters));
  for (ParameterSpec& parameter : parameters) {
    parameter.trainable = parameter.trainable && s.adapter->saved_modules.count(StoredModule(s, parameter.name)) > 0;
  }
  return InGroups(s, std::move(parameters));
}

int64_t NumElements(const std::vector<ParameterSpec>& parameters, bool trainable_only = false) {
  int64_t total = 0;
  for (const ParameterSpec& parameter : parameters) {
    if (parameter.trainable || !trainable_only) total += Numel(parameter);
  }
  return total;
}

// Whole parts of a module's path at its beginning or its end.
bool Names(const std::string& item, const std::string& module) {
  return module == item || absl::EndsWith(module, absl::StrCat(".", item)) ||
         absl::StartsWith(module, absl::StrCat(item, "."));
}

template <typename Items>
bool AnyNames(const Items& items, const std::string& module) {
  return std::any_of(items.begin(), items.end(), [&](const std::string& item) { return Names(item, module); });
}

// The module that users know a parameter by.
std::string NamedModule(const DecoderSpec& s, const ParameterSpec& parameter) {
  return parameter.expert ? ExpertModule(s, parameter.name) : StoredModule(s, parameter.name);
}

bool StaysUnquantized(const DecoderSpec& s, const ParameterSpec& parameter) {
  return parameter.wide || (parameter.expert ? !s.quantized_experts : !s.quantized_layers) ||
         AnyNames(s.unquantized, NamedModule(s, parameter));
}

// Calls visit(begin, end) for every fused group of matrices, and every matrix alone.
template <typename Visit>
void EachMatrixGroup(const std::vector<ParameterSpec>& parameters, Visit&& visit) {
  for (size_t begin = 0, end; begin < parameters.size(); begin = end) {
    end = begin + 1;
    while (end < parameters.size() && parameters[end].fused_with_previous) ++end;
    if (parameters[begin].shape.size() == 2) visit(begin, end);
  }
}

}  // namespace

std::string BlockName(int64_t layer) { return absl::StrCat("model.layers.", layer); }

std::vector<ParameterSpec> EmbeddingParameters(const DecoderSpec& s) {
  return Frozen(s, {Matrix(absl::StrCat(kEmbeddingName, ".weight"), s.vocab_size, s.hidden_size, s.initializer_range,
                           Placement::kVocabulary)});
}

std::vector<ParameterSpec> EmbeddingExtras(const DecoderSpec& s) {
  std::vector<ParameterSpec> extras;
  if (s.embedding.positions) {
    extras.push_back(Matrix(absl::StrCat(kPositionsName, ".weight"), s.max_positions + s.embedding.position_offset,
                            s.hidden_size, s.initializer_range, Placement::kReplicated));
  }
  if (s.embedding.norm.has_value()) {
    for (ParameterSpec& norm : NormParameters(*s.embedding.norm, kEmbeddingNorm, s.hidden_size))
      extras.push_back(std::move(norm));
  }
  return Frozen(s, std::move(extras));
}

std::vector<ParameterSpec> HeadParameters(const DecoderSpec& s) {
  std::vector<ParameterSpec> head = NormParameters(s.head.norm, kLastNorm, s.hidden_size);
  if (s.head.bias) {
    ParameterSpec bias = Vector(absl::StrCat(kHeadModule, ".bias"), s.vocab_size, Initialization::kZeros);
    bias.placement = Placement::kVocabulary;
    head.push_back(std::move(bias));
  }
  if (!s.tied_embeddings)
    head.push_back(Matrix(absl::StrCat(kHeadModule, ".weight"), s.vocab_size, s.hidden_size, s.initializer_range,
                          Placement::kVocabulary));
  return Frozen(s, std::move(head));
}

BlockNormNames NormNames(const LayerSpec& layer) {
  BlockNormNames names;
  if (layer.norm_before) {
    names.before_mixer = "input_layernorm";
    if (!layer.shared_norm)
      names.before_feed_forward = layer.norm_after ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  }
  if (layer.norm_after) {
    names.after_mixer = "post_attention_layernorm";
    names.after_feed_forward = "post_feedforward_layernorm";
  }
  return names;
}

std::vector<ParameterSpec> BlockParameters(const DecoderSpec& s, int64_t index) {
  const LayerSpec& layer = s.layer(index);
  PartPlace place;
  place.prefix = BlockName(index) + ".";
  place.hidden_size = s.hidden_size;
  place.deviation = s.initializer_range;
  place.residual_deviation = s.scaled_residual_init
                                 ? s.initializer_range / std::sqrt(2.0 * static_cast<double>(s.num_layers))
                                 : s.initializer_range;
  const BlockNormNames names = NormNames(layer);
  std::vector<ParameterSpec> block;
  const auto add = [&block](std::vector<ParameterSpec> parameters) {
    block.insert(block.end(), std::make_move_iterator(parameters.begin()), std::make_move_iterator(parameters.end()));
  };
  const auto norm = [&](const std::string& name) {
    if (!name.empty()) add(NormParameters(layer.norm, place.prefix + name, s.hidden_size));
  };
  norm(names.before_mixer);
  add(layer.mixer->Parameters(place));
  norm(names.after_mixer);
  norm(names.before_feed_forward);
  add(layer.feed_forward->Parameters(place));
  norm(names.after_feed_forward);
  for (ParameterSpec& parameter : block) parameter.block_matrix = parameter.shape.size() == 2 && !parameter.wide;
  block = Frozen(s, std::move(block));
  if (!s.quantization.has_value()) return block;
  EachMatrixGroup(block, [&](size_t begin, size_t end) {
    bool stays = false;
    for (size_t i = begin; i < end; ++i) stays = stays || StaysUnquantized(s, block[i]);
    for (size_t i = begin; i < end && !stays; ++i) {
      block[i].quantized = true;
      block[i].trainable = false;
    }
  });
  return block;
}

bool QuantizedByName(const std::string& name, const QuantizationConfig& quantization) {
  return absl::StartsWith(name, "model.layers.") && !AnyNames(quantization.skip_modules(), ModuleOf(name));
}

void CheckQuantization(const DecoderSpec& spec, std::vector<std::string>* problems) {
  if (!spec.quantization.has_value()) return;
  const std::vector<ParameterSpec> all = DecoderParameters(spec);
  EachMatrixGroup(all, [&](size_t begin, size_t end) {
    std::vector<std::string> stay, others;
    for (size_t i = begin; i < end; ++i) {
      (StaysUnquantized(spec, all[i]) ? stay : others).push_back(NamedModule(spec, all[i]));
    }
    if (!stay.empty() && !others.empty())
      problems->push_back(absl::StrCat("model.quantization.skip_modules: names ", absl::StrJoin(stay, ", "),
                                       " but not ", absl::StrJoin(others, ", "),
                                       ", which are multiplied as one matrix; name all or none of them"));
  });
  if (!spec.quantized_layers &&
      std::none_of(all.begin(), all.end(), [](const ParameterSpec& parameter) { return parameter.quantized; })) {
    problems->push_back(
        "model.quantization.method: MXFP4 is for experts, of which nothing would be quantized here; give NF4 or INT8");
  }
  const WeightTable table = MakeWeightTable(spec);
  for (const WeightTable::Stored& stored : table.stored) {
    const bool quantized = all[stored.runs.front().parameter].quantized;
    const bool whole = stored.runs.size() == 1 && !stored.transposed;
    // How experts are quantized no other file says.
    if (!quantized || whole || all[stored.runs.front().parameter].expert) continue;
    problems->push_back(absl::StrCat("model.quantization: this family's checkpoints store ", stored.name,
                                     " in another way than as it is multiplied; name it in skip_modules"));
    break;
  }
  for (const std::string& item : spec.unquantized) {
    bool known = item == kHeadModule;  // also where it is tied
    for (const ParameterSpec& parameter : all) known = known || Names(item, NamedModule(spec, parameter));
    if (!known)
      problems->push_back(absl::StrCat("model.quantization.skip_modules: \"", item, "\" names no layer of the model"));
  }
}

// What a parameter's part of its module's adapter is called: by the module, or where that has several parameters, by
// the parameter.
std::string AdaptedName(const AdapterSpec& adapter, const std::vector<ParameterSpec>& all,
                        const std::string& parameter) {
  const std::string module = adapter.ModuleOfParameter(parameter);
  const auto others = std::count_if(all.begin(), all.end(), [&](const ParameterSpec& other) {
    return other.shape.size() == 2 && adapter.ModuleOfParameter(other.name) == module;
  });
  return others > 1 ? ModuleOf(parameter) : module;
}

// An adapter's factors are matrices where the weight is; that of experts lies with them.
void OfExperts(const ParameterSpec& weight, ParameterSpec* factor) {
  factor->block_matrix = weight.block_matrix;
  if (!weight.expert) return;
  factor->expert = true;
  factor->active = weight.active;
  factor->heads = weight.heads;
}

UnitAdapters MakeUnitAdapters(const DecoderSpec& s, const std::vector<ParameterSpec>& base, bool experts) {
  UnitAdapters adapters;
  if (s.adapter == nullptr) return adapters;
  const auto add = [&](ParameterSpec spec) {
    spec.added = true;
    adapters.parameters.push_back(std::move(spec));
    return static_cast<int>(adapters.parameters.size()) - 1;
  };
  EachMatrixGroup(base, [&](size_t first, size_t end) {
    if (base[first].expert != experts) return;
    GroupAdapter group;
    group.base = static_cast<int>(first);
    // The A of all modules first: they are one matrix. Members of one module share its A.
    int64_t ranks = 0;
    for (size_t i = first; i < end; ++i) {
      const ModuleAdapter* module = s.adapter->Find(base[i].name);
      if (module == nullptr) continue;
      const std::string name = s.adapter->ModuleOfParameter(base[i].name);
      GroupAdapter::Member member;
      member.base = static_cast<int>(i);
      member.rank = module->rank;
      member.scale = module->scale;
      if (!group.members.empty() && name == s.adapter->ModuleOfParameter(base[group.members.back().base].name)) {
        member.first_rank = group.members.back().first_rank;
        group.members.push_back(member);
        continue;
      }
      // Every expert has an A of its own.
      ParameterSpec a = Matrix(name + ".lora_A.weight", (experts ? base[i].heads : 1) * module->rank, base[i].shape[1],
                               0, experts ? Placement::kRows : Placement::kReplicated);
      if (base[i].placement == Placement::kColumns) a.placement = Placement::kColumns;
      OfExperts(base[i], &a);
      if (experts) a.matrices = base[i].heads;
      const bool gaussian = s.adapter->start == AdapterSpec::kGaussian;
      a.initialization = gaussian ? Initialization::kNormal : Initialization::kUniform;
      a.standard_deviation =
          gaussian ? 1.0 / static_cast<double>(module->rank) : 1.0 / std::sqrt(static_cast<double>(base[i].shape[1]));
      a.fused_with_previous = !group.members.empty();
      member.first_rank = ranks;
      ranks += module->rank;
      const int index = add(std::move(a));
      if (group.members.empty()) group.a = index;
      group.members.push_back(member);
    }
    for (GroupAdapter::Member& member : group.members) {
      const ParameterSpec& weight = base[member.base];
      const std::string module = AdaptedName(*s.adapter, base, weight.name);
      // B and magnitudes are cut as the weight's rows are.
      const bool rows = weight.placement != Placement::kColumns;
      const Placement placement = rows ? weight.placement : Placement::kReplicated;
      ParameterSpec b = Matrix(module + ".lora_B.weight", weight.shape[0], member.rank, 0, placement);
      b.initialization = Initialization::kZeros;
      b.heads = rows ? weight.heads : 0;
      b.rate = s.adapter->b_rate;
      OfExperts(weight, &b);
      b.matrices = weight.matrices;
      member.b = add(std::move(b));
      if (!s.adapter->dora) continue;
      ParameterSpec magnitude =
          Vector(module + ".lora_magnitude_vector", weight.shape[0], Initialization::kOnes, placement);
      magnitude.heads = rows ? weight.heads : 0;
      member.magnitude = add(std::move(magnitude));
    }
    if (s.adapter->start == AdapterSpec::kPissa) {
      const auto initial = [&](int index) {
        ParameterSpec copy = adapters.parameters[index];
        copy.name = InitialFactor(copy.name);
        copy.trainable = false;
        copy.initialization = Initialization::kZeros;
        return add(std::move(copy));
      };
      for (size_t m = 0; m < group.members.size(); ++m) {
        const int index = initial(group.a + static_cast<int>(m));
        if (m == 0) group.initial_a = index;
      }
      for (GroupAdapter::Member& member : group.members) member.initial_b = initial(member.b);
    }
    if (!group.members.empty()) adapters.groups.push_back(std::move(group));
  });
  adapters.parameters = InGroups(s, std::move(adapters.parameters));
  return adapters;
}

std::vector<std::string> LinearModules(const DecoderSpec& spec) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    for (const ParameterSpec& parameter : BlockParameters(spec, layer)) {
      if (parameter.shape.size() != 2 || parameter.expert || parameter.wide) continue;
      const std::string module = StoredModule(spec, parameter.name);
      if (names.empty() || names.back() != module) names.push_back(module);
    }
  }
  if (!spec.tied_embeddings) names.push_back(StoredModule(spec, absl::StrCat(kHeadModule, ".weight")));
  return names;
}

std::vector<std::string> ExpertModules(const DecoderSpec& spec) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    for (const ParameterSpec& parameter : BlockParameters(spec, layer)) {
      if (parameter.shape.size() == 2 && parameter.expert) names.push_back(ExpertModule(spec, parameter.name));
    }
  }
  return names;
}

std::vector<std::string> WholeModules(const DecoderSpec& spec) {
  std::vector<std::string> names = {StoredModule(spec, absl::StrCat(kEmbeddingName, ".weight"))};
  if (!spec.tied_embeddings) names.push_back(StoredModule(spec, absl::StrCat(kHeadModule, ".weight")));
  return names;
}

void PutAdapter(const AdapterConfig& config, uint64_t seed, DecoderSpec* spec, std::vector<std::string>* problems) {
  auto adapter = std::make_shared<AdapterSpec>(
      ResolveAdapter(config, LinearModules(*spec), ExpertModules(*spec), WholeModules(*spec), problems));
  adapter->seed = seed;
  const std::vector<ParameterSpec> all = DecoderParameters(*spec);
  std::map<std::string, std::string> member_of;  // module -> its first parameter
  std::string fused;
  for (const ParameterSpec& parameter : all) {
    if (parameter.shape.size() != 2) continue;
    const std::string module = NamedModule(*spec, parameter);
    if (module != ModuleOf(parameter.name)) adapter->module_of[parameter.name] = module;
    const bool first = member_of.emplace(module, parameter.name).second;
    if (!first && adapter->modules.count(module) > 0) fused = module;
  }
  const bool pissa = config.init_lora_weights() == AdapterConfig::PISSA;
  if (pissa && !fused.empty())
    problems->push_back(
        absl::StrCat("adapter.init_lora_weights: PISSA takes ", fused,
                     " apart as one matrix, which here are several; use PEFT or GAUSSIAN, or leave it out"));
  for (const ParameterSpec& parameter : all) {
    const ModuleAdapter* module = adapter->Find(parameter.name);
    if (!pissa || module == nullptr || module->rank <= std::min(parameter.shape[0], parameter.shape[1])) continue;
    problems->push_back(absl::StrCat("adapter.init_lora_weights: PISSA of rank ", module->rank,
                                     " takes as many singular values, but ", ModuleOf(parameter.name), " is ",
                                     parameter.shape[0], " x ", parameter.shape[1],
                                     "; lower adapter.r, or set adapter.rank_pattern for it"));
    break;
  }
  spec->adapter = std::move(adapter);
}

std::vector<std::vector<ParameterSpec>> UnitParameters(const DecoderSpec& spec) {
  std::vector<std::vector<ParameterSpec>> units = {EmbeddingParameters(spec)};
  for (ParameterSpec& extra : EmbeddingExtras(spec)) units[0].push_back(std::move(extra));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) units.push_back(BlockParameters(spec, layer));
  units.push_back(HeadParameters(spec));
  return units;
}

std::vector<ParameterSpec> DecoderParameters(const DecoderSpec& spec) {
  std::vector<ParameterSpec> all;
  for (const std::vector<ParameterSpec>& unit : UnitParameters(spec)) all.insert(all.end(), unit.begin(), unit.end());
  return all;
}

std::vector<ParameterSpec> AdapterParameters(const DecoderSpec& spec) {
  std::vector<ParameterSpec> all;
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    for (const bool experts : {false, true}) {
      const UnitAdapters adapters = MakeUnitAdapters(spec, BlockParameters(spec, layer), experts);
      all.insert(all.end(), adapters.parameters.begin(), adapters.parameters.end());
    }
  }
  const UnitAdapters head = MakeUnitAdapters(spec, HeadParameters(spec));
  all.insert(all.end(), head.parameters.begin(), head.parameters.end());
  return all;
}

int64_t Numel(const ParameterSpec& parameter) {
  int64_t n = 1;
  for (const int64_t extent : parameter.shape) n *= extent;
  return n;
}

int64_t NumParameters(const DecoderSpec& spec) { return NumElements(DecoderParameters(spec)); }

int64_t NumTrainableParameters(const DecoderSpec& spec) {
  return NumElements(DecoderParameters(spec), /*trainable_only=*/true) +
         NumElements(AdapterParameters(spec), /*trainable_only=*/true);
}

}  // namespace trireme
