#include "models/blocks/units.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/gpt_functions.h"

namespace trireme {
namespace {

class EmbeddingUnit final : public Unit {
 public:
  EmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* positions,
                std::shared_ptr<const DecoderShared> shared)
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
  std::shared_ptr<const DecoderShared> shared_;
};

}  // namespace

std::unique_ptr<Unit> MakeEmbeddingUnit(std::string name, ParameterBuffer* buffer, ParameterBuffer* positions,
                                        std::shared_ptr<const DecoderShared> shared) {
  return std::make_unique<EmbeddingUnit>(std::move(name), buffer, positions, std::move(shared));
}

}  // namespace trireme
