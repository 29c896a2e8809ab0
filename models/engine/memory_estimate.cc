#include "models/engine/memory_estimate.h"

#include <algorithm>
#include <map>

#include "kernels/base/cpu_allocator.h"
#include "launch/base/log.h"
#include "models/blocks/decoder.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

int64_t ElementSize(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 2 : 4; }

// What one unit (embedding, block, head) needs on one tensor rank, as blocks of memory; its experts apart, on one
// expert rank, since other ranks have their shards.
struct UnitSize {
  int64_t gathered = 0;  // bytes of its weights as products use them; of quantized ones: as they are stored
  int64_t trained = 0;   // elements
  int64_t expert_gathered = 0, expert_trained = 0;
  double state = 0, expert_state = 0;  // bytes of the optimizer's
  int64_t matrices = 0;                // elements that the optimizer gathers, experts' included
  int64_t workspace = 0;               // bytes for the largest matrix of them

  UnitSize& operator+=(const UnitSize& other) {
    gathered += other.gathered;
    trained += other.trained;
    expert_gathered += other.expert_gathered;
    expert_trained += other.expert_trained;
    state += other.state;
    expert_state += other.expert_state;
    matrices = std::max(matrices, other.matrices);
    workspace = std::max(workspace, other.workspace);
    return *this;
  }
  int64_t all_gathered() const { return gathered + expert_gathered; }
  int64_t all_trained() const { return trained + expert_trained; }
};

UnitSize SizeOf(const EnginePlan& plan, const OptimizerMemory& optimizer,
                const std::vector<ParameterSpec>& parameters) {
  const int64_t tensor = plan.mesh[Axis::kTensor];
  UnitSize size;
  const auto train = [&](const ParameterSpec& parameter, int64_t n, int64_t* trained, double* state) {
    if (!parameter.trainable) return;
    *trained += n;
    if (optimizer.state_bytes) *state += optimizer.state_bytes(parameter) * static_cast<double>(n);
    const int64_t workspace = optimizer.workspace_bytes ? optimizer.workspace_bytes(parameter) : 0;
    size.workspace = std::max(size.workspace, workspace);
    if (workspace > 0) size.matrices += n;
  };
  for (const ParameterSpec& parameter : parameters) {
    int64_t n = Numel(parameter);
    if (parameter.expert) {
      n /= plan.mesh.expert;
      size.expert_gathered += parameter.quantized ? QuantizedStorage::StoredBytes(*plan.model.quantization, n)
                                                  : n * ElementSize(plan.storage.compute);
      train(parameter, n, &size.expert_trained, &size.expert_state);
      continue;
    }
    if (parameter.placement != Placement::kReplicated) {
      const int64_t parts = parameter.heads > 0 ? std::min(tensor, parameter.heads) : tensor;
      n = (n + parts - 1) / parts;
    }
    if (parameter.quantized) {
      size.gathered += QuantizedStorage::StoredBytes(*plan.model.quantization, n);
    } else {
      size.gathered += n * ElementSize(plan.storage.compute);
    }
    train(parameter, n, &size.trained, &size.state);
  }
  size.gathered = CpuBlockBytes(size.gathered);
  size.trained = CpuBlockBytes(4 * size.trained) / 4;
  size.expert_gathered = CpuBlockBytes(size.expert_gathered);
  size.expert_trained = CpuBlockBytes(4 * size.expert_trained) / 4;
  return size;
}

// The sizes of the embedding with positions, of each block, and of the head. A tied matrix counts in the embedding and,
// where the head is on another rank, there too.
std::vector<UnitSize> UnitSizes(const EnginePlan& plan, const OptimizerMemory& optimizer) {
  const DecoderSpec& model = plan.model;
  std::vector<UnitSize> sizes;
  for (const std::vector<ParameterSpec>& unit : UnitParameters(model)) sizes.push_back(SizeOf(plan, optimizer, unit));
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    for (const bool experts : {false, true})
      sizes[layer + 1] +=
          SizeOf(plan, optimizer, MakeUnitAdapters(model, BlockParameters(model, layer), experts).parameters);
  }
  sizes.back() += SizeOf(plan, optimizer, MakeUnitAdapters(model, HeadParameters(model)).parameters);
  return sizes;
}

int64_t TokensPerRank(const EnginePlan& plan) {
  return plan.micro_batch_size * plan.sequence_length / plan.mesh[Axis::kContext];
}

// What a block's adapters keep for their backward pass: all groups' x A^T and, of DoRA, their products before
// magnitudes.
int64_t AdapterBytes(const EnginePlan& plan, int64_t layer) {
  const std::vector<ParameterSpec> base = BlockParameters(plan.model, layer);
  const UnitAdapters adapters = MakeUnitAdapters(plan.model, base);
  const int64_t bytes_per_column = TokensPerRank(plan) * ElementSize(plan.storage.compute);
  int64_t bytes = 0;
  for (const GroupAdapter& group : adapters.groups) {
    int64_t ranks = 0, columns = 0;
    for (const GroupAdapter::Member& member : group.members) {
      ranks += member.rank;
      const ParameterSpec& weight = base[member.base];
      const bool cut = weight.placement != Placement::kColumns;
      if (member.magnitude >= 0) columns += weight.shape[0] / (cut ? plan.mesh[Axis::kTensor] : 1);
    }
    bytes += CpuBlockBytes(bytes_per_column * ranks) + CpuBlockBytes(bytes_per_column * columns);
  }
  return bytes;
}

RankSizes SizesOf(const EnginePlan& plan) {
  RankSizes sizes;
  sizes.tokens = TokensPerRank(plan);
  sizes.tensor = plan.mesh[Axis::kTensor];
  sizes.element_size = ElementSize(plan.storage.compute);
  sizes.hidden_size = plan.model.hidden_size;
  return sizes;
}

// Where one group of quantized matrices is dequantized: q, k, v or gate, up, or one expert.
int64_t DequantizedBytes(const EnginePlan& plan) {
  int64_t largest = 0, group = 0;
  for (const ParameterSpec& parameter : DecoderParameters(plan.model)) {
    if (parameter.expert) {
      if (parameter.quantized)
        largest = std::max(largest, Numel(parameter) / parameter.heads * plan.mesh[Axis::kTensor]);
      continue;
    }
    group = (parameter.fused_with_previous ? group : 0) + (parameter.quantized ? Numel(parameter) : 0);
    largest = std::max(largest, group);
  }
  return largest / plan.mesh[Axis::kTensor] * 4;
}

// All tables of rotation that the layers of this decoder use.
int64_t RotationBytes(const DecoderSpec& model) {
  int64_t bytes = 0;
  std::vector<Rotation> seen;
  for (const AttentionShape& shape : model.attentions()) {
    if (!shape.rotation.has_value() || std::find(seen.begin(), seen.end(), *shape.rotation) != seen.end()) continue;
    const Rotation& rotation = seen.emplace_back(*shape.rotation);
    const int64_t rows = (rotation.second_beyond() > 0 ? 2 : 1) * rotation.max_positions;
    bytes += CpuBlockBytes(rows * std::max(rotation.dims, rotation.padded_to) / 2 * 4) * 2;
  }
  return bytes;
}

}  // namespace

int64_t BlockActivationBytes(const EnginePlan& plan, int64_t index) {
  const LayerSpec& layer = plan.model.layer(index);
  const RankSizes sizes = SizesOf(plan);
  const int64_t rows = sizes.tokens / sizes.tensor;
  const int64_t input = CpuBlockBytes(rows * sizes.hidden_size * sizes.element_size), per_row = CpuBlockBytes(rows * 4);
  const PartMemory mixer = layer.mixer->Memory(sizes), feed_forward = layer.feed_forward->Memory(sizes);
  std::map<std::string, int64_t> kept = mixer.kept;
  kept.insert(feed_forward.kept.begin(), feed_forward.kept.end());
  int64_t bytes = input;
  if (plan.recompute.blocks) {
    for (const std::string& name : plan.recompute.keep) bytes += kept.count(name) > 0 ? kept.at(name) : 0;
    return bytes;
  }
  bytes += input + AdapterBytes(plan, index) + mixer.saved + feed_forward.saved;  // and the stream between the parts
  for (const auto& [name, amount] : kept) bytes += amount;
  // A LayerNorm leaves what goes into products beside its statistics; an RMSNorm is computed again.
  const BlockNormNames norms = NormNames(layer);
  for (const std::string& norm : {norms.before_mixer, norms.before_feed_forward}) {
    if (!norm.empty()) bytes += layer.norm.kind == NormSpec::kLayer ? input + 2 * per_row : per_row;
  }
  return bytes;
}

std::string ToString(const RankMemory& memory) {
  const auto bytes = [](int64_t n) { return HumanBytes(static_cast<double>(n)); };
  return absl::StrCat(bytes(memory.total()), ": weights ", bytes(memory.weights), ", gradients ",
                      bytes(memory.gradients), ", optimizer ", bytes(memory.optimizer), ", activations ",
                      bytes(memory.activations));
}

RankMemory EstimateMemory(const EnginePlan& plan, const OptimizerMemory& optimizer, int pipeline_rank,
                          c10::DeviceType device) {
  const DecoderSpec& m = plan.model;
  const std::vector<UnitSize> sizes = UnitSizes(plan, optimizer);
  const int64_t shards = plan.mesh[Axis::kDataShard] * plan.mesh[Axis::kContext];
  const int64_t compute = ElementSize(plan.storage.compute);
  const int64_t master = compute == 2 && plan.storage.master_weights ? 4 : 0;
  const ShardLevel level = plan.storage.shard;

  UnitSize own;
  int64_t largest = 0, second = 0, largest_trained = 0, block_activations = 0;
  bool has_head = false;
  int first = 0;
  for (int s = 0; s < plan.schedule.num_stages(); ++s) {
    const int end = first + plan.stage_units[s];
    if (plan.schedule.rank_of_stage[s] == pipeline_rank) {
      for (int unit = first; unit < end; ++unit) {
        own += sizes[unit];
        second = std::max(second, std::min(largest, sizes[unit].all_gathered()));
        largest = std::max(largest, sizes[unit].all_gathered());
        largest_trained = std::max(largest_trained, sizes[unit].all_trained());
        if (unit == 0) continue;
        unit == m.num_layers + 1 ? void(has_head = true)
                                 : void(block_activations += BlockActivationBytes(plan, unit - 1));
      }
    }
    first = end;
  }
  if (has_head && m.tied_embeddings && plan.schedule.rank_of_stage[0] != pipeline_rank)
    own += SizeOf(plan, optimizer, EmbeddingParameters(m));

  RankMemory memory;
  const bool whole_gradient = !plan.storage.reduce_every_microbatch;
  const auto hold = [&](int64_t gathered, int64_t trained, double state, int64_t over) {
    const int64_t part = level == ShardLevel::kNone ? 1 : over;
    memory.weights += trained / part * master + gathered / (level == ShardLevel::kParameters ? part : 1);
    memory.gradients += trained / part * 4 + (whole_gradient && part > 1 ? trained * 4 : 0);
    memory.optimizer += static_cast<int64_t>(state / static_cast<double>(part));
  };
  const int64_t expert_shards = shards * plan.mesh[Axis::kTensor] / plan.mesh.expert;
  hold(own.gathered, own.trained, own.state, shards);
  hold(own.expert_gathered, own.expert_trained, own.expert_state, expert_shards);
  if (own.workspace > 0) {
    // What a block's matrices become, of three blocks: one's on the way, one's worked on, one's coming back.
    const int64_t part = level == ShardLevel::kNone ? 1 : shards;
    memory.optimizer += 3 * 4 * own.matrices / part + own.workspace;
  }
  if (level != ShardLevel::kNone && std::max(shards, own.expert_gathered > 0 ? expert_shards : 1) > 1) {
    if (level == ShardLevel::kParameters) memory.weights += largest + second;
    // A unit's gradient and, beside it, what arrives of it from other ranks.
    memory.gradients += (whole_gradient ? 1 : 2) * largest_trained * 4;
  }
  if (m.quantization.has_value()) memory.weights += DequantizedBytes(plan);
  memory.weights += RotationBytes(m);
  // The most microbatches between a stage's forward and the end of its backward.
  int in_flight = 0, most = 0;
  bool later = false;  // gradients of weights
  for (const Action& action : plan.schedule.ranks[pipeline_rank]) {
    later = later || action.kind == ActionKind::kWeightGradient;
    if (action.kind == ActionKind::kForward) most = std::max(most, ++in_flight);
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kWeightGradient) --in_flight;
  }
  const int stages = static_cast<int>(
      std::count(plan.schedule.rank_of_stage.begin(), plan.schedule.rank_of_stage.end(), pipeline_rank));
  memory.activations = most * block_activations / std::max(1, stages);
  // What a block's two passes need for a moment.
  const int64_t tokens = TokensPerRank(plan), hidden = CpuBlockBytes(tokens * m.hidden_size * compute);
  const RankSizes rank_sizes = SizesOf(plan);
  int64_t moment = 0;
  for (const LayerSpec& layer : m.layers) {
    moment = std::max(moment, layer.mixer->Memory(rank_sizes).moment +
                                  (later ? 2 : 1) * layer.feed_forward->Memory(rank_sizes).moment);
  }
  memory.activations += 6 * hidden + moment;
  if (has_head) {
    const int64_t chunk = std::min(tokens, LossChunkTokens(plan, device));
    const int64_t ids = (m.vocab_size + plan.mesh[Axis::kTensor] - 1) / plan.mesh[Axis::kTensor];
    // Logits; the input, normed, and its gradient, of all tokens and of the chunk.
    memory.activations +=
        CpuBlockBytes(chunk * ids * 4) + (compute == 2 ? CpuBlockBytes(chunk * ids * 2) : 0) + 4 * hidden;
    // A CPU multiplies by a float32 copy of the matrix.
    if (compute == 2 && device == c10::DeviceType::CPU) memory.activations += CpuBlockBytes(ids * m.hidden_size * 4);
  }
  return memory;
}

int64_t LossChunkTokens(const EnginePlan& plan, c10::DeviceType device) {
  constexpr int64_t kOnCpus = 512, kOnGpus = 4096;
  if (plan.loss_chunk_tokens > 0) return plan.loss_chunk_tokens;
  return device == c10::DeviceType::CPU ? kOnCpus : std::min(kOnGpus, TokensPerRank(plan));
}

}  // namespace trireme
