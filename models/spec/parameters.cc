#include "models/spec/parameters.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>

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

// Under an adapter only what it names is trained.
std::vector<ParameterSpec> Frozen(const DecoderSpec& s, std::vector<ParameterSpec> parameters) {
  if (s.adapter == nullptr) return parameters;
  for (ParameterSpec& parameter : parameters) {
    parameter.trainable = parameter.trainable && s.adapter->saved_modules.count(ModuleOf(parameter.name)) > 0;
  }
  return parameters;
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
bool AnyNames(const Items& items, const std::string& parameter) {
  const std::string module = ModuleOf(parameter);
  return std::any_of(items.begin(), items.end(), [&](const std::string& item) { return Names(item, module); });
}

bool StaysUnquantized(const DecoderSpec& s, const ParameterSpec& parameter) {
  return AnyNames(s.unquantized, parameter.name);
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
  return absl::StartsWith(name, "model.layers.") && !AnyNames(quantization.skip_modules(), name);
}

void CheckUnquantized(const DecoderSpec& spec, std::vector<std::string>* problems) {
  if (!spec.quantization.has_value()) return;
  const std::vector<ParameterSpec> all = DecoderParameters(spec);
  EachMatrixGroup(all, [&](size_t begin, size_t end) {
    std::vector<std::string> stay, others;
    for (size_t i = begin; i < end; ++i) {
      (StaysUnquantized(spec, all[i]) ? stay : others).push_back(ModuleOf(all[i].name));
    }
    if (!stay.empty() && !others.empty())
      problems->push_back(absl::StrCat("model.quantization.skip_modules: names ", absl::StrJoin(stay, ", "),
                                       " but not ", absl::StrJoin(others, ", "),
                                       ", which are multiplied as one matrix; name all or none of them"));
  });
  for (const std::string& item : spec.unquantized) {
    bool known = item == kHeadModule;  // also where it is tied
    for (const ParameterSpec& parameter : all) known = known || Names(item, ModuleOf(parameter.name));
    if (!known)
      problems->push_back(absl::StrCat("model.quantization.skip_modules: \"", item, "\" names no layer of the model"));
  }
}

UnitAdapters MakeUnitAdapters(const DecoderSpec& s, const std::vector<ParameterSpec>& base) {
  UnitAdapters adapters;
  if (s.adapter == nullptr) return adapters;
  const auto add = [&](ParameterSpec spec) {
    spec.added = true;
    adapters.parameters.push_back(std::move(spec));
    return static_cast<int>(adapters.parameters.size()) - 1;
  };
  EachMatrixGroup(base, [&](size_t first, size_t end) {
    GroupAdapter group;
    group.base = static_cast<int>(first);
    // The A of all members first: they are one matrix.
    for (size_t i = first; i < end; ++i) {
      const ModuleAdapter* module = s.adapter->Find(base[i].name);
      if (module == nullptr) continue;
      ParameterSpec a =
          Matrix(ModuleOf(base[i].name) + ".lora_A.weight", module->rank, base[i].shape[1], 0, Placement::kReplicated);
      if (base[i].placement == Placement::kColumns) a.placement = Placement::kColumns;
      const bool gaussian = s.adapter->start == AdapterSpec::kGaussian;
      a.initialization = gaussian ? Initialization::kNormal : Initialization::kUniform;
      a.standard_deviation =
          gaussian ? 1.0 / static_cast<double>(module->rank) : 1.0 / std::sqrt(static_cast<double>(base[i].shape[1]));
      a.fused_with_previous = !group.members.empty();
      GroupAdapter::Member member;
      member.base = static_cast<int>(i);
      member.rank = module->rank;
      member.scale = module->scale;
      const int index = add(std::move(a));
      if (group.members.empty()) group.a = index;
      group.members.push_back(member);
    }
    for (GroupAdapter::Member& member : group.members) {
      const ParameterSpec& weight = base[member.base];
      const std::string module = ModuleOf(weight.name);
      // B and magnitudes are cut as the weight's rows are.
      const bool rows = weight.placement != Placement::kColumns;
      const Placement placement = rows ? weight.placement : Placement::kReplicated;
      ParameterSpec b = Matrix(module + ".lora_B.weight", weight.shape[0], member.rank, 0, placement);
      b.initialization = Initialization::kZeros;
      b.heads = rows ? weight.heads : 0;
      b.rate = s.adapter->b_rate;
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
  return adapters;
}

std::vector<std::string> LinearModules(const DecoderSpec& spec) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    for (const ParameterSpec& parameter : BlockParameters(spec, layer)) {
      if (parameter.shape.size() == 2) names.push_back(ModuleOf(parameter.name));
    }
  }
  if (!spec.tied_embeddings) names.push_back(kHeadModule);
  return names;
}

std::vector<std::string> WholeModules(const DecoderSpec& spec) {
  std::vector<std::string> names = {kEmbeddingName};
  if (!spec.tied_embeddings) names.push_back(kHeadModule);
  return names;
}

void PutAdapter(const AdapterConfig& config, uint64_t seed, DecoderSpec* spec, std::vector<std::string>* problems) {
  if (spec->fused_qkv)
    problems->push_back(
        "adapter: checkpoints of GPT families store q, k and v as one module, which PEFT adapts as one; they take no "
        "adapters, train them whole");
  auto adapter =
      std::make_shared<AdapterSpec>(ResolveAdapter(config, LinearModules(*spec), WholeModules(*spec), problems));
  adapter->seed = seed;
  for (const ParameterSpec& parameter : DecoderParameters(*spec)) {
    const ModuleAdapter* module = adapter->Find(parameter.name);
    if (config.init_lora_weights() != AdapterConfig::PISSA || module == nullptr ||
        module->rank <= std::min(parameter.shape[0], parameter.shape[1]))
      continue;
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
    const UnitAdapters adapters = MakeUnitAdapters(spec, BlockParameters(spec, layer));
    all.insert(all.end(), adapters.parameters.begin(), adapters.parameters.end());
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
