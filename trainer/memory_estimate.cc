#include "trainer/memory_estimate.h"

#include <algorithm>
#include <map>
#include <set>

#include "models/decoder.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

int64_t ElementSize(PrecisionConfig::Format format) { return format == PrecisionConfig::BF16 ? 2 : 4; }

// Elements of each unit (embedding with positions, blocks, head) on one tensor rank. A tied matrix counts in the
// embedding and, where the head is on another rank, there too.
std::vector<int64_t> UnitElements(const Recipe& recipe) {
  const DecoderSpec& model = recipe.model;
  const int64_t tensor = recipe.mesh[Axis::kTensor];
  std::vector<int64_t> elements;
  for (const std::vector<ParameterSpec>& unit : UnitParameters(model)) {
    elements.push_back(0);
    for (const ParameterSpec& parameter : unit) {
      int64_t n = 1;
      for (int64_t extent : parameter.shape) n *= extent;
      if (parameter.placement != Placement::kReplicated) {
        const int64_t parts = parameter.heads > 0 ? std::min(tensor, parameter.heads) : tensor;
        n = (n + parts - 1) / parts;
      }
      elements.back() += n;
    }
  }
  return elements;
}

int64_t TokensPerRank(const Recipe& recipe) {
  return recipe.config.micro_batch_size() * recipe.config.data().sequence_length() / recipe.mesh[Axis::kContext];
}

}  // namespace

int64_t BlockActivationBytes(const Recipe& recipe) {
  const DecoderSpec& m = recipe.model;
  const int64_t tensor = recipe.mesh[Axis::kTensor], tokens = TokensPerRank(recipe), rows = tokens / tensor;
  const int64_t size = ElementSize(recipe.config.precision().compute());
  const int64_t q = m.num_heads / tensor * m.head_dim, kv = std::max<int64_t>(1, m.num_kv_heads / tensor) * m.head_dim;
  const int64_t input = rows * m.hidden_size * size;
  const std::map<std::string, int64_t> results = {
      {kKeepQkv, tokens * (q + 2 * kv) * size},
      {kKeepAttention, tokens * (q * size + m.num_heads / tensor * 4)},
      {kKeepGateUp, tokens * (m.gpt_block ? 1 : 2) * m.intermediate_size / tensor * size}};
  const RecomputeConfig& recompute = recipe.config.recompute();
  int64_t bytes = input;
  if (recompute.policy() == RecomputeConfig::NONE) {
    bytes += rows * m.hidden_size * size + 2 * rows * 4;  // the residual stream between attention and MLP; two norms
    for (const auto& [name, amount] : results) bytes += amount;
    // GPT's blocks keep what goes into their products: both normed inputs and what GELU made, and four numbers per row.
    if (m.gpt_block) bytes += 2 * input + results.at(kKeepGateUp) + 2 * rows * 4;
  } else if (recompute.policy() == RecomputeConfig::SELECTIVE) {
    std::set<std::string> keep(recompute.keep().begin(), recompute.keep().end());
    if (keep.empty()) keep.insert(kKeepAttention);
    for (const std::string& name : keep) bytes += results.at(name);
  }
  return bytes;
}

RankMemory EstimateMemory(const Recipe& recipe, int pipeline_rank) {
  const RunConfig& config = recipe.config;
  const DecoderSpec& m = recipe.model;
  const std::vector<int64_t> elements = UnitElements(recipe);
  const int64_t shards = recipe.mesh[Axis::kDataShard] * recipe.mesh[Axis::kContext];
  const int64_t compute = ElementSize(config.precision().compute());
  const int64_t master = compute == 2 && config.precision().master_weights() ? 4 : 0;
  const int64_t states = config.optimizer().has_adamw() ? 8 : config.optimizer().sgd().momentum() > 0 ? 4 : 0;
  const ParallelConfig::Shard level = config.parallel().shard();

  int64_t own = 0, largest = 0, second = 0, blocks = 0;
  bool has_head = false;
  int first = 0;
  for (int s = 0; s < recipe.schedule.num_stages(); ++s) {
    const int end = first + recipe.stage_units[s];
    if (recipe.schedule.rank_of_stage[s] == pipeline_rank) {
      for (int unit = first; unit < end; ++unit) {
        own += elements[unit];
        second = std::max(second, std::min(largest, elements[unit]));
        largest = std::max(largest, elements[unit]);
        if (unit == 0) continue;
        unit == m.num_layers + 1 ? void(has_head = true) : void(++blocks);
      }
    }
    first = end;
  }
  if (has_head && m.tied_embeddings && recipe.schedule.rank_of_stage[0] != pipeline_rank)
    own += elements[0] - (m.learned_positions ? m.max_positions * m.hidden_size : 0);

  RankMemory memory;
  const int64_t shard = own / shards;
  const bool whole_gradient = config.parallel().reduce_gradients() == ParallelConfig::LAST_MICROBATCH || shards == 1;
  if (level == ParallelConfig::NONE || shards == 1) {
    memory.weights = own * (compute + master);
    memory.gradients = own * 4;
    memory.optimizer = own * states;
  } else {
    memory.weights =
        shard * master +
        (level == ParallelConfig::PARAMETERS ? shard * compute + (largest + second) * compute : own * compute);
    memory.gradients = whole_gradient ? own * 4 + shard * 4 : shard * 4 + largest * 4;
    memory.optimizer = shard * states;
  }
  // The most microbatches between a stage's forward and the end of its backward.
  int in_flight = 0, most = 0;
  for (const Action& action : recipe.schedule.ranks[pipeline_rank]) {
    if (action.kind == ActionKind::kForward) most = std::max(most, ++in_flight);
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kWeightGradient) --in_flight;
  }
  const int stages = static_cast<int>(
      std::count(recipe.schedule.rank_of_stage.begin(), recipe.schedule.rank_of_stage.end(), pipeline_rank));
  memory.activations = most * blocks / std::max(1, stages) * BlockActivationBytes(recipe);
  if (has_head) {
    const int64_t tokens = TokensPerRank(recipe);
    const int64_t chunk = std::min<int64_t>(tokens, config.kernels().loss_chunk_tokens());
    const int64_t ids = (m.vocab_size + recipe.mesh[Axis::kTensor] - 1) / recipe.mesh[Axis::kTensor];
    memory.activations += chunk * ids * (compute == 2 ? 6 : 4) + 2 * tokens * m.hidden_size * compute;
  }
  return memory;
}

}  // namespace trireme
