#include <ATen/TensorOperators.h>
#include <ATen/ops/tanh.h>

#include "models/blocks/units.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

class HeadUnit final : public Unit {
 public:
  HeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index, ParameterBuffer* added,
           std::unique_ptr<Adapter> adapter, std::shared_ptr<const DecoderShared> shared)
      : name_(std::move(name)),
        buffers_(norm == head || norm == nullptr ? std::vector<ParameterBuffer*>{head}
                                                 : std::vector<ParameterBuffer*>{norm, head}),
        norm_(norm == nullptr ? NormWeights{shared->spec.head.norm}
                              : FindNorm(shared->spec.head.norm, kLastNorm, *norm)),
        head_(head->weight(head_index)),
        adapter_(std::move(adapter)),
        shared_(std::move(shared)) {
    const HeadSpec& spec = shared_->spec.head;
    TRIREME_CHECK(!spec.bias || spec.scale == 1, "a head with a bias and a scale");
    for (size_t i = 0; norm != nullptr && i < norm->specs().size(); ++i) {
      if (norm->specs()[i].name == absl::StrCat(kHeadModule, ".bias")) bias_ = &norm->weight(static_cast<int>(i));
    }
    if (adapter_ == nullptr) return;
    buffers_.push_back(added);
    head_.set_adapter(adapter_.get());
  }
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    const HeadSpec& spec = shared_->spec.head;
    const int64_t vocab_size = shared_->spec.vocab_size;
    if (adapter_ != nullptr) adapter_->tokens = DroppedTokens(context);
    at::Tensor x = ApplyNorm(input[0], norm_);
    if (spec.scale != 1) x = x * spec.scale;  // as good as of the logits
    if (context.phase == Phase::kGenerate) {
      at::Tensor logits = Logits(x, head_, bias_, vocab_size, context.batch->wanted, *shared_->tensor);
      const double cap = spec.softcap;
      return {cap > 0 ? at::tanh(logits / cap) * cap : logits};
    }
    LossHeadOptions options;
    options.scale = context.loss_scale;
    options.z_loss = context.z_loss;
    options.softcap = spec.softcap;
    options.chunk_tokens = context.loss_chunk_tokens;
    options.with_gradient = context.phase == Phase::kTrain;
    const MicrobatchTensors& batch = *context.batch;
    const HeadLoss loss =
        CrossEntropyHead(x, head_, bias_, vocab_size, batch.targets, batch.with_target, *shared_->tensor, options);
    context.loss_sums->add_(loss.sums);
    return {loss.seed};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  NormWeights norm_;
  Weight& head_;
  Weight* bias_ = nullptr;
  std::unique_ptr<Adapter> adapter_;
  std::shared_ptr<const DecoderShared> shared_;
};

}  // namespace

std::unique_ptr<Unit> MakeHeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index,
                                   ParameterBuffer* added, std::unique_ptr<Adapter> adapter,
                                   std::shared_ptr<const DecoderShared> shared) {
  return std::make_unique<HeadUnit>(std::move(name), norm, head, head_index, added, std::move(adapter),
                                    std::move(shared));
}

}  // namespace trireme
