#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <optional>

#include "models/blocks/principal_factors.h"
#include "models/blocks/units.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

// One of the two parts of a block, with its norms.
struct PartAndNorms {
  std::shared_ptr<const BlockPart> part;
  std::optional<NormWeights> before, after;
};

class BlockUnit final : public Unit {
 public:
  BlockUnit(int64_t layer, BlockStorage storage, std::shared_ptr<const DecoderShared> shared)
      : name_(BlockName(layer)),
        layer_(shared->spec.layer(layer)),
        storage_(std::move(storage)),
        shared_(std::move(shared)) {
    const std::string prefix = name_ + ".";
    for (size_t i = 0; i < storage_.parameters.size(); ++i)
      weights_.Add(storage_.parameters[i].name.substr(prefix.size()), storage_.weights[i]);
    const auto norm = [&](const std::string& name) {
      return name.empty() ? std::nullopt
                          : std::optional(FindNorm(layer_.norm, prefix + name, storage_.parameters, storage_.weights));
    };
    const BlockNormNames names = NormNames(layer_);
    mixer_ = {layer_.mixer, norm(names.before_mixer), norm(names.after_mixer)};
    feed_forward_ = {layer_.feed_forward, norm(names.before_feed_forward), norm(names.after_feed_forward)};
  }
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return storage_.buffers; }
  bool recomputable() const override { return true; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    for (const auto& adapter : storage_.adapters) adapter->tokens = DroppedTokens(context);
    return {layer_.parallel ? Parallel(context, input[0]) : Serial(context, input[0])};
  }

  void InitializeDerived() override {
    for (size_t g = 0; g < storage_.groups.size(); ++g) {
      const GroupAdapter& group = storage_.groups[g];
      const bool columns = storage_.parameters[group.base].placement == Placement::kColumns;
      for (size_t m = 0; m < group.members.size(); ++m) {
        const GroupAdapter::Member& member = group.members[m];
        const Weight& weight = *storage_.weights[group.base];
        const AdapterMember& rows = storage_.adapters[g]->members[m];
        if (member.initial_b >= 0) InitializePissa(group, m, weight, rows);
        if (member.magnitude < 0) continue;
        storage_.buffers.back()->Set(member.magnitude,
                                     AdaptedRowLengths(weight, rows, columns ? shared_->tensor.get() : nullptr));
      }
    }
  }

 private:
  // The stream is x + delta, since a norm that follows may add on its way (NormedStream).
  at::Tensor Serial(const UnitContext& context, const at::Tensor& x) const {
    NormedStream first(x, at::Tensor(), Pointer(mixer_.before), *shared_->tensor, context.kept);
    const bool norm_adds = feed_forward_.before.has_value() && feed_forward_.before->spec.kind == NormSpec::kRms;
    at::Tensor delta = Call(context, mixer_, first, /*adds=*/Plain(mixer_) && !norm_adds, at::Tensor());
    at::Tensor h = first.Sum();
    if (Plain(mixer_) && !norm_adds) {
      h = std::exchange(delta, at::Tensor());
    } else if (mixer_.after.has_value()) {
      h = h + std::exchange(delta, at::Tensor());
    }
    NormedStream second(h, delta, Pointer(feed_forward_.before), *shared_->tensor, context.kept);
    const bool adds = Plain(feed_forward_);
    const at::Tensor result = Call(context, feed_forward_, second, adds, at::Tensor());
    return adds ? result : second.Sum() + result;
  }

  at::Tensor Parallel(const UnitContext& context, const at::Tensor& x) const {
    NormedStream input(x, at::Tensor(), Pointer(mixer_.before), *shared_->tensor, context.kept);
    if (layer_.shared_norm) input.Rows();
    const bool mixer_adds = Plain(mixer_), feed_forward_adds = Plain(feed_forward_);
    const at::Tensor mixed = Call(context, mixer_, input, mixer_adds, at::Tensor());
    const at::Tensor h = mixer_adds ? mixed : x + mixed;
    NormedStream own(x, at::Tensor(), Pointer(feed_forward_.before), *shared_->tensor, context.kept);
    NormedStream& read = layer_.shared_norm ? input : own;
    const at::Tensor result = Call(context, feed_forward_, read, feed_forward_adds, h);
    return feed_forward_adds ? result : h + result;
  }

  // Nothing stands between a part's last product and the stream.
  bool Plain(const PartAndNorms& part) const { return !part.after.has_value() && layer_.residual_multiplier == 1; }

  static const NormWeights* Pointer(const std::optional<NormWeights>& norm) {
    return norm.has_value() ? &*norm : nullptr;
  }

  // A part's result as it is to be added to the stream, or with the stream added to it. onto: that stream, where it is
  // not what the part reads.
  at::Tensor Call(const UnitContext& context, const PartAndNorms& part, NormedStream& input, bool adds,
                  const at::Tensor& onto) const {
    at::Tensor result = part.part->Forward({input, adds, onto, weights_, shared_->parts, context, name_});
    if (part.after.has_value()) result = ApplyNorm(result, *part.after);
    return layer_.residual_multiplier == 1 ? result : result * layer_.residual_multiplier;
  }

  // Sets the m-th member's A and B, now and as training began. Collective over the tensor ranks.
  void InitializePissa(const GroupAdapter& group, size_t m, const Weight& weight, const AdapterMember& rows) {
    const GroupAdapter::Member& member = group.members[m];
    ParameterBuffer& buffer = *storage_.buffers.back();
    const int a = static_cast<int>(m);
    const Rectangle &of_a = buffer.rectangle(group.a + a), &of_b = buffer.rectangle(member.b);
    const at::Tensor part = weight.full().data.narrow(0, rows.first_row, rows.rows);
    const at::Tensor whole = at::zeros(storage_.parameters[member.base].shape, part.options().dtype(at::kFloat));
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

  std::string name_;
  LayerSpec layer_;
  BlockStorage storage_;
  PartWeights weights_;
  PartAndNorms mixer_, feed_forward_;
  std::shared_ptr<const DecoderShared> shared_;
};

}  // namespace

std::unique_ptr<Unit> MakeBlockUnit(int64_t layer, BlockStorage storage, std::shared_ptr<const DecoderShared> shared) {
  return std::make_unique<BlockUnit>(layer, std::move(storage), std::move(shared));
}

}  // namespace trireme
