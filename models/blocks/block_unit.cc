#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "models/blocks/gpt_block.h"
#include "models/blocks/principal_factors.h"
#include "models/blocks/units.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

class BlockUnit final : public Unit {
 public:
  BlockUnit(std::string name, BlockStorage storage, int64_t layer, BlockParameters index,
            std::shared_ptr<const DecoderShared> shared)
      : name_(std::move(name)),
        buffers_(std::move(storage.buffers)),
        weights_(std::move(storage.weights)),
        groups_(std::move(storage.groups)),
        adapters_(std::move(storage.adapters)),
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
  std::shared_ptr<const DecoderShared> shared_;
};

}  // namespace

std::unique_ptr<Unit> MakeBlockUnit(std::string name, BlockStorage storage, int64_t layer, BlockParameters index,
                                    std::shared_ptr<const DecoderShared> shared) {
  return std::make_unique<BlockUnit>(std::move(name), std::move(storage), layer, std::move(index), std::move(shared));
}

}  // namespace trireme
