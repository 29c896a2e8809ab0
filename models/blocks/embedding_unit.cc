#include <ATen/TensorOperators.h>

#include "models/blocks/units.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

class EmbeddingUnit final : public Unit {
 public:
  EmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* extras,
                std::shared_ptr<const DecoderShared> shared)
      : name_(std::move(name)), buffers_({buffer}), shared_(std::move(shared)) {
    if (extras == nullptr) return;
    buffers_.push_back(extras);
    const EmbeddingSpec& spec = shared_->spec.embedding;
    if (spec.positions) positions_ = &extras->weight(0);
    if (spec.norm.has_value()) norm_ = FindNorm(*spec.norm, kEmbeddingNorm, *extras);
  }
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }
  bool backward_reads_parameters() const override { return norm_.has_value(); }
  Carry Forward(const UnitContext& context, Carry, const at::Tensor& anchor) override {
    ProcessGroup& tensor = *shared_->tensor;
    const EmbeddingSpec& spec = shared_->spec.embedding;
    at::Tensor x = Embedding(context.batch->tokens, buffers_[0]->weight(0), tensor, anchor, spec.scale);
    if (positions_ != nullptr) {
      const at::Tensor& positions = context.batch->positions;
      x = AddPositions(x, spec.position_offset > 0 ? positions + spec.position_offset : positions, *positions_, tensor);
    }
    return {norm_.has_value() ? ApplyNorm(x, *norm_) : x};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  Weight* positions_ = nullptr;
  std::optional<NormWeights> norm_;
  std::shared_ptr<const DecoderShared> shared_;
};

}  // namespace

std::unique_ptr<Unit> MakeEmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* extras,
                                        std::shared_ptr<const DecoderShared> shared) {
  return std::make_unique<EmbeddingUnit>(std::move(name), buffer, extras, std::move(shared));
}

}  // namespace trireme
