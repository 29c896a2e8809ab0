#include "models/blocks/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "models/blocks/gpt_block.h"
#include "models/blocks/principal_factors.h"
#include "parallel/comm/mpi_group.h"
#include "parallel/layers/adapter.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/gpt_functions.h"

namespace trireme {
namespace {

// What all blocks share.
struct Shared {
  DecoderSpec spec;
  AttentionBackend attention;
  RopeTable rope, local_rope;
  std::shared_ptr<ProcessGroup> tensor;
};

class EmbeddingUnit final : public Unit {
 public:
  // positions: the learned table's buffer; null: there is none.
  EmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* positions,
                std::shared_ptr<const Shared> shared)
      : name_(std::move(name)), buffers_({buffer}), shared_(std::move(shared)) {
    if (positions != nullptr) buffers_.push_back(positions);
  }
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }
  bool backward_reads_parameters() const override { return false; }
  Carry Forward(const UnitContext& context, Carry, const at::Tensor& anchor) override {
    ProcessGroup& tensor = *shared_->tensor;
    const at::Tensor x =
        Embedding(context.batch->tokens, buffers_[0]->weight(0), tensor, anchor, shared_->spec.embedding_scale);
    if (buffers_.size() == 1) return {x};
    return {AddPositions(x, context.batch->positions, buffers_[1]->weight(0), tensor)};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  std::shared_ptr<const Shared> shared_;
};

// rectangles: this rank's, of the block's parameters. added: the buffer of its adapters.
Adapter MakeAdapter(const std::vector<Rectangle>& rectangles, ParameterBuffer& added, const GroupAdapter& group,
                    const AdapterSpec& spec) {
  Adapter adapter;
  adapter.a = &added.weight(group.a);
  if (group.initial_a >= 0) adapter.initial_a = &added.weight(group.initial_a);
  adapter.dropout.rate = spec.config.lora_dropout();
  adapter.dropout.key =
      MakeRandomKey(spec.seed, RandomPurpose::kDropout, StableId(added.specs()[group.a].name.c_str()), /*step=*/0);
  adapter.dropout.first_column = rectangles[group.base].offset[1];
  int64_t first_rank = 0;
  for (const GroupAdapter::Member& part : group.members) {
    AdapterMember member;
    for (int i = group.base; i < part.base; ++i) member.first_row += rectangles[i].size[0];
    member.rows = rectangles[part.base].size[0];
    member.first_rank = first_rank;
    member.rank = part.rank;
    member.b = &added.weight(part.b);
    if (part.magnitude >= 0) member.magnitude = &added.weight(part.magnitude);
    if (part.initial_b >= 0) member.initial_b = &added.weight(part.initial_b);
    member.scale = part.scale;
    first_rank += part.rank;
    adapter.members.push_back(member);
  }
  return adapter;
}

// What adapters number their rows by, to drop elements of them.
at::Tensor DroppedTokens(const UnitContext& context) {
  return context.phase == Phase::kTrain ? context.batch->numbers : at::Tensor();
}

// x + attention(norm(x)), then + mlp(norm(.)): Llama's block, with what the specification adds.
class BlockUnit final : public Unit {
 public:
  // weights: of index.parameters, in their order. adapters: hung on them, one for each of groups, whose parameters are
  // in the last buffer.
  BlockUnit(std::string name, std::vector<ParameterBuffer*> buffers, std::vector<Weight*> weights,
            std::vector<GroupAdapter> groups, std::vector<std::unique_ptr<Adapter>> adapters, int64_t layer,
            BlockParameters index, std::shared_ptr<const Shared> shared)
      : name_(std::move(name)),
        buffers_(std::move(buffers)),
        weights_(std::move(weights)),
        groups_(std::move(groups)),
        adapters_(std::move(adapters)),
        pattern_(shared->spec.layer(layer)),
        index_(std::move(index)),
        shared_(std::move(shared)) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return true; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    const DecoderSpec& spec = shared_->spec;
    ProcessGroup& tensor = *shared_->tensor;
    KeptResults* kept = context.kept;
    for (const auto& adapter : adapters_) adapter->tokens = DroppedTokens(context);
    const SelfAttentionArguments attention = Attention(context);
    if (spec.gpt_block) return {GptBlock(input[0], weights_, index_, spec, attention, tensor, kept)};

    const double eps = spec.rms_norm_eps, offset = spec.norm_offset ? 1 : 0;
    const auto weight = [&](int index) -> Weight& { return *weights_[index]; };
    const auto optional = [&](int index) { return index < 0 ? nullptr : weights_[index]; };

    const at::Tensor& x = input[0];  // [this tensor rank's tokens, hidden]
    at::Tensor qkv = NormLinear(x, at::Tensor(), weight(index_.input_norm), eps, weight(index_.q), tensor, kept,
                                kKeepQkv, optional(index_.q_bias), offset)
                         .second;
    if (spec.qk_norm) {
      qkv =
          HeadNorm(qkv, weight(index_.q_norm), weight(index_.k_norm), attention.heads, attention.kv_heads, eps, offset);
    }
    at::Tensor h = x;
    at::Tensor attended =
        Linear(SelfAttention(qkv, attention), weight(index_.o), tensor, at::Tensor(), optional(index_.o_bias));
    if (spec.post_norms) {
      h = AddNorm(x, attended, weight(index_.post_attention_norm), eps, offset);
      attended = at::Tensor();
    }
    at::Tensor gate_up;
    std::tie(h, gate_up) = NormLinear(h, attended, weight(index_.mlp_norm), eps, weight(index_.gate), tensor, kept,
                                      kKeepGateUp, nullptr, offset);
    Weight& down = weight(index_.down);
    if (!spec.post_norms) return {GatedLinear(gate_up, spec.activation, down, tensor, /*residual=*/h)};
    const at::Tensor mlp = GatedLinear(gate_up, spec.activation, down, tensor);
    return {AddNorm(h, mlp, weight(index_.post_mlp_norm), eps, offset)};
  }

  void InitializeDerived() override {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const bool columns = index_.parameters[groups_[g].base].placement == Placement::kColumns;
      for (size_t m = 0; m < groups_[g].members.size(); ++m) {
        const GroupAdapter::Member& member = groups_[g].members[m];
        const Weight& weight = *weights_[groups_[g].base];
        if (member.initial_b >= 0) InitializePissa(groups_[g], m, weight, adapters_[g]->members[m]);
        if (member.magnitude < 0) continue;
        buffers_.back()->Set(member.magnitude, AdaptedRowLengths(weight, adapters_[g]->members[m],
                                                                 columns ? shared_->tensor.get() : nullptr));
      }
    }
  }

 private:
  // Sets the m-th member's A and B, now and as training began. Collective over the tensor ranks.
  void InitializePissa(const GroupAdapter& group, size_t m, const Weight& weight, const AdapterMember& rows) {
    const GroupAdapter::Member& member = group.members[m];
    ParameterBuffer& buffer = *buffers_.back();
    const int a = static_cast<int>(m);
    const Rectangle &of_a = buffer.rectangle(group.a + a), &of_b = buffer.rectangle(member.b);
    const at::Tensor part = weight.full().data.narrow(0, rows.first_row, rows.rows);
    const at::Tensor whole = at::zeros(index_.parameters[member.base].shape, part.options().dtype(at::kFloat));
    whole.narrow(0, of_b.offset[0], of_b.size[0]).narrow(1, of_a.offset[1], of_a.size[1]).copy_(part);
    shared_->tensor->AllReduce(whole, ReduceOp::kSum).Wait();
    // Heads that several ranks hold were counted by each.
    const int64_t copies = part.numel() * shared_->tensor->size() / whole.numel();
    const Factors factors = PrincipalFactors(copies > 1 ? whole / static_cast<double>(copies) : whole, member.rank);
    const double scale = 1 / std::sqrt(member.scale);
    const at::Tensor own_a = factors.a.narrow(1, of_a.offset[1], of_a.size[1]).contiguous() * scale;
    const at::Tensor own_b = factors.b.narrow(0, of_b.offset[0], of_b.size[0]).contiguous() * scale;
    for (const int index : {group.a + a, group.initial_a + a}) buffer.Set(index, own_a);
    for (const int index : {member.b, member.initial_b}) buffer.Set(index, own_b);
  }

  SelfAttentionArguments Attention(const UnitContext& context) const {
    const DecoderSpec& spec = shared_->spec;
    const int64_t ranks = shared_->tensor->size();
    const MicrobatchTensors& batch = *context.batch;
    SelfAttentionArguments attention;
    attention.heads = spec.num_heads / ranks;
    attention.kv_heads = std::max<int64_t>(1, spec.num_kv_heads / ranks);
    attention.head_dim = spec.head_dim;
    attention.positions = batch.positions;
    attention.rope = !pattern_.rope ? nullptr : pattern_.local ? &shared_->local_rope : &shared_->rope;
    attention.cu_seqlens = batch.cu_seqlens;
    attention.max_seqlen = batch.max_seqlen;
    attention.window = pattern_.window;
    attention.backend = &shared_->attention;
    attention.context = batch.contexts.empty() ? nullptr : batch.contexts.at(pattern_.window).get();
    if (context.cache != nullptr) attention.cache = &context.cache->layer(name_);
    attention.kept = context.kept;
    // Normed heads are a copy: what was kept is from before.
    attention.rotated = !spec.qk_norm && context.kept != nullptr && context.kept->Has(kKeepQkv);
    attention.scale = spec.attention_scale;
    attention.softcap = spec.attention_softcap;
    return attention;
  }

  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  std::vector<Weight*> weights_;
  std::vector<GroupAdapter> groups_;
  std::vector<std::unique_ptr<Adapter>> adapters_;  // of each group
  LayerPattern pattern_;
  BlockParameters index_;
  std::shared_ptr<const Shared> shared_;
};

class HeadUnit final : public Unit {
 public:
  // adapter: of the head, its parameters in `added`; null: none.
  HeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index, ParameterBuffer* added,
           std::unique_ptr<Adapter> adapter, std::shared_ptr<const Shared> shared)
      : name_(std::move(name)),
        buffers_(norm == head ? std::vector<ParameterBuffer*>{norm} : std::vector<ParameterBuffer*>{norm, head}),
        norm_(norm->weight(0)),
        norm_bias_(shared->spec.gpt_block ? &norm->weight(1) : nullptr),
        head_(head->weight(head_index)),
        adapter_(std::move(adapter)),
        shared_(std::move(shared)) {
    if (adapter_ == nullptr) return;
    buffers_.push_back(added);
    head_.set_adapter(adapter_.get());
  }
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    const DecoderSpec& spec = shared_->spec;
    if (adapter_ != nullptr) adapter_->tokens = DroppedTokens(context);
    const at::Tensor x = norm_bias_ != nullptr ? LayerNorm(input[0], norm_, *norm_bias_, spec.rms_norm_eps)
                                               : Norm(input[0], norm_, spec.rms_norm_eps, spec.norm_offset ? 1 : 0);
    if (context.phase == Phase::kGenerate) {
      at::Tensor logits = Logits(x, head_, spec.vocab_size, context.batch->wanted, *shared_->tensor);
      const double cap = spec.final_logit_softcap;
      return {cap > 0 ? at::tanh(logits / cap) * cap : logits};
    }
    LossHeadOptions options;
    options.scale = context.loss_scale;
    options.z_loss = context.z_loss;
    options.softcap = spec.final_logit_softcap;
    options.chunk_tokens = context.loss_chunk_tokens;
    options.with_gradient = context.phase == Phase::kTrain;
    const MicrobatchTensors& batch = *context.batch;
    const HeadLoss loss =
        CrossEntropyHead(x, head_, spec.vocab_size, batch.targets, batch.with_target, *shared_->tensor, options);
    context.loss_sums->add_(loss.sums);
    return {loss.seed};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  Weight& norm_;
  Weight* norm_bias_;
  Weight& head_;
  std::unique_ptr<Adapter> adapter_;
  std::shared_ptr<const Shared> shared_;
};

}  // namespace

DecoderUnits BuildDecoder(const DecoderSpec& spec, const BufferOptions& options, const AttentionBackend& attention,
                          const UnitRange& range) {
  DecoderUnits decoder;
  auto shared = std::make_shared<Shared>();
  shared->spec = spec;
  shared->attention = attention;
  const auto any_layer = [&](auto&& property) {
    for (int64_t i = 0; i < spec.num_layers; ++i) {
      if (property(spec.layer(i))) return true;
    }
    return false;
  };
  const at::ScalarType arithmetic = ArithmeticType(options.compute);
  if (any_layer([](const LayerPattern& layer) { return layer.rope && !layer.local; }))
    shared->rope = MakeRopeTable(spec, spec.max_positions, arithmetic, options.device);
  if (any_layer([](const LayerPattern& layer) { return layer.rope && layer.local; }))
    shared->local_rope = MakeRopeTable(spec, spec.max_positions, arithmetic, options.device, /*local=*/true);
  shared->tensor = options.tensor_group != nullptr ? options.tensor_group : MakeSelfGroup("alone");
  const auto has = [&](int64_t unit) { return unit >= range.begin && unit < range.end; };
  const bool first = has(0), last = has(spec.num_layers + 1);
  const auto add_buffer = [&](const std::string& name, std::vector<ParameterSpec> specs, int uses = 1) {
    BufferOptions buffer_options = options;
    buffer_options.name = name;
    buffer_options.uses = uses;
    if (specs[0].quantized) buffer_options.quantization = spec.quantization;
    // Only a tied matrix stands on more than one pipeline rank.
    if (!spec.tied_embeddings || name != kEmbeddingName) buffer_options.tied_group = nullptr;
    decoder.buffers.push_back(std::make_unique<ParameterBuffer>(std::move(specs), buffer_options));
    return decoder.buffers.back().get();
  };

  ParameterBuffer* embedding = range.embedding;
  if (embedding == nullptr && (first || (last && spec.tied_embeddings))) {
    const int uses = spec.tied_embeddings && range.whole_embedding ? 2 : 1;
    embedding = add_buffer(kEmbeddingName, EmbeddingParameters(spec), uses);
  }
  if (first) {
    ParameterBuffer* positions =
        spec.learned_positions ? add_buffer(kPositionsName, PositionParameters(spec)) : nullptr;
    decoder.units.push_back(std::make_unique<EmbeddingUnit>(kEmbeddingName, embedding, positions, shared));
  }
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    if (!has(layer + 1)) continue;
    const std::string name = absl::StrCat("model.layers.", layer);
    BlockParameters index = MakeBlockParameters(spec, layer);
    std::vector<ParameterBuffer*> buffers;
    std::vector<Weight*> weights(index.parameters.size());
    std::vector<Rectangle> rectangles(index.parameters.size());
    for (const bool quantized : {false, true}) {
      std::vector<ParameterSpec> specs;
      std::vector<size_t> places;
      for (size_t i = 0; i < index.parameters.size(); ++i) {
        if (index.parameters[i].quantized != quantized) continue;
        specs.push_back(index.parameters[i]);
        places.push_back(i);
      }
      if (specs.empty()) continue;
      buffers.push_back(add_buffer(quantized ? absl::StrCat(name, " (quantized)") : name, std::move(specs)));
      for (size_t i = 0; i < places.size(); ++i) {
        weights[places[i]] = &buffers.back()->weight(static_cast<int>(i));
        rectangles[places[i]] = buffers.back()->rectangle(static_cast<int>(i));
      }
    }
    UnitAdapters added = MakeUnitAdapters(spec, index.parameters);
    std::vector<std::unique_ptr<Adapter>> adapters;
    if (!added.groups.empty()) {
      buffers.push_back(add_buffer(name + ".adapter", added.parameters));
      for (const GroupAdapter& group : added.groups) {
        adapters.push_back(std::make_unique<Adapter>(MakeAdapter(rectangles, *buffers.back(), group, *spec.adapter)));
        weights[group.base]->set_adapter(adapters.back().get());
      }
    }
    decoder.units.push_back(std::make_unique<BlockUnit>(name, std::move(buffers), std::move(weights),
                                                        std::move(added.groups), std::move(adapters), layer,
                                                        std::move(index), shared));
  }
  if (last) {
    const std::vector<ParameterSpec> head = HeadParameters(spec);
    ParameterBuffer* head_buffer = add_buffer("head", head);
    const UnitAdapters adapters = MakeUnitAdapters(spec, head);
    ParameterBuffer* added = nullptr;
    std::unique_ptr<Adapter> adapter;
    if (!adapters.groups.empty()) {
      std::vector<Rectangle> rectangles;
      for (size_t i = 0; i < head.size(); ++i) rectangles.push_back(head_buffer->rectangle(static_cast<int>(i)));
      added = add_buffer("head.adapter", adapters.parameters);
      adapter = std::make_unique<Adapter>(MakeAdapter(rectangles, *added, adapters.groups[0], *spec.adapter));
    }
    decoder.units.push_back(std::make_unique<HeadUnit>(
        "head", head_buffer, spec.tied_embeddings ? embedding : head_buffer,
        spec.tied_embeddings ? 0 : static_cast<int>(head.size()) - 1, added, std::move(adapter), shared));
  }
  return decoder;
}

AttentionArguments ExampleAttention(const DecoderSpec& spec, at::ScalarType compute, at::Device device) {
  const at::TensorOptions options = at::TensorOptions().dtype(compute).device(device);
  AttentionArguments example;
  example.q = at::empty({1, spec.num_heads, spec.head_dim}, options);
  example.k = example.v = at::empty({1, spec.num_kv_heads, spec.head_dim}, options);
  example.cu_seqlens_q = example.cu_seqlens_k = at::zeros({2}, options.dtype(at::kInt));
  example.max_q = example.max_k = 1;
  example.window = spec.sliding_window;
  example.scale = spec.attention_scale > 0 ? spec.attention_scale : 1.0 / std::sqrt(static_cast<double>(spec.head_dim));
  example.softcap = spec.attention_softcap;
  return example;
}

}  // namespace trireme
