#include <ATen/TensorOperators.h>
#include <ATen/ops/tanh.h>

#include "models/blocks/units.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/gpt_functions.h"

namespace trireme {
namespace {

class HeadUnit final : public Unit {
 public:
  HeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index, ParameterBuffer* added,
           std::unique_ptr<Adapter> adapter, std::shared_ptr<const DecoderShared> shared)
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
