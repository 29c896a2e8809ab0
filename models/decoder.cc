#include "models/decoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "kernels/functions.h"

namespace trireme {
namespace {

// What all blocks share.
struct Shared {
  DecoderSpec spec;
  AttentionBackend attention;
  RopeTable rope;
};

class EmbeddingUnit final : public Unit {
 public:
  EmbeddingUnit(std::string name, ParameterBuffer* buffer) : name_(std::move(name)), buffers_({buffer}) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }
  Carry Forward(const UnitContext& context, Carry, const at::Tensor& anchor) override {
    return {Embedding(context.batch->tokens, buffers_[0]->weight(0), anchor)};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
};

// x + attention(norm(x)), then + mlp(norm(.)): Llama's block.
class BlockUnit final : public Unit {
 public:
  // In the order of the buffer.
  enum Index { kInputNorm, kQ, kK, kV, kO, kPostNorm, kGate, kUp, kDown };

  BlockUnit(std::string name, ParameterBuffer* buffer, std::shared_ptr<const Shared> shared)
      : name_(std::move(name)), buffers_({buffer}), shared_(std::move(shared)) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return true; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    ParameterBuffer& p = *buffers_[0];
    const DecoderSpec& spec = shared_->spec;
    SelfAttentionArguments attention;
    attention.heads = spec.num_heads;
    attention.kv_heads = spec.num_kv_heads;
    attention.head_dim = spec.head_dim;
    attention.positions = context.batch->positions;
    attention.rope = &shared_->rope;
    attention.cu_seqlens = context.batch->cu_seqlens;
    attention.max_seqlen = context.batch->max_seqlen;
    attention.window = spec.sliding_window;
    attention.backend = &shared_->attention;

    const at::Tensor& x = input[0];  // [tokens, hidden]
    const at::Tensor qkv = NormLinear(x, at::Tensor(), p.weight(kInputNorm), spec.rms_norm_eps, p.weight(kQ)).second;
    const at::Tensor attended = Linear(SelfAttention(qkv, attention), p.weight(kO));
    const auto [h, gate_up] = NormLinear(x, attended, p.weight(kPostNorm), spec.rms_norm_eps, p.weight(kGate));
    return {SwiGluLinear(gate_up, p.weight(kDown), /*residual=*/h)};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  std::shared_ptr<const Shared> shared_;
};

class HeadUnit final : public Unit {
 public:
  HeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index, double eps)
      : name_(std::move(name)),
        buffers_(norm == head ? std::vector<ParameterBuffer*>{norm} : std::vector<ParameterBuffer*>{norm, head}),
        norm_(norm->weight(0)),
        head_(head->weight(head_index)),
        eps_(eps) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    LossHeadOptions options;
    options.scale = context.loss_scale;
    options.z_loss = context.z_loss;
    options.chunk_tokens = context.loss_chunk_tokens;
    options.with_gradient = context.phase == Phase::kTrain;
    const Loss loss = CrossEntropyHead(Norm(input[0], norm_, eps_), head_, context.batch->targets, options);
    context.loss_sums->add_(loss.sums);
    return {loss.seed};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  Weight& norm_;
  Weight& head_;
  double eps_;
};

ParameterSpec Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation,
                     bool fused_with_previous = false) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {rows, columns};
  spec.standard_deviation = deviation;
  spec.fused_with_previous = fused_with_previous;
  return spec;
}

ParameterSpec NormWeight(const std::string& name, int64_t width) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {width};
  spec.initialization = Initialization::kOnes;
  spec.decay = false;
  return spec;
}

std::vector<ParameterSpec> BlockParameters(const DecoderSpec& s, int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const int64_t q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
  const double deviation = s.initializer_range;
  const double residual = s.scaled_residual_init ? deviation / std::sqrt(2.0 * s.num_layers) : deviation;
  return {
      NormWeight(prefix + "input_layernorm.weight", s.hidden_size),
      Matrix(prefix + "self_attn.q_proj.weight", q, s.hidden_size, deviation),
      Matrix(prefix + "self_attn.k_proj.weight", kv, s.hidden_size, deviation, /*fused_with_previous=*/true),
      Matrix(prefix + "self_attn.v_proj.weight", kv, s.hidden_size, deviation, /*fused_with_previous=*/true),
      Matrix(prefix + "self_attn.o_proj.weight", s.hidden_size, q, residual),
      NormWeight(prefix + "post_attention_layernorm.weight", s.hidden_size),
      Matrix(prefix + "mlp.gate_proj.weight", s.intermediate_size, s.hidden_size, deviation),
      Matrix(prefix + "mlp.up_proj.weight", s.intermediate_size, s.hidden_size, deviation,
             /*fused_with_previous=*/true),
      Matrix(prefix + "mlp.down_proj.weight", s.hidden_size, s.intermediate_size, residual),
  };
}

}  // namespace

DecoderUnits BuildDecoder(const DecoderSpec& spec, const BufferOptions& options, const AttentionBackend& attention) {
  DecoderUnits decoder;
  auto shared = std::make_shared<Shared>();
  shared->spec = spec;
  shared->attention = attention;
  shared->rope = MakeRopeTable(spec, spec.max_positions, ArithmeticType(options.compute), options.device);
  const auto add_buffer = [&](const std::string& name, std::vector<ParameterSpec> specs, int uses = 1) {
    BufferOptions buffer_options = options;
    buffer_options.name = name;
    buffer_options.uses = uses;
    decoder.buffers.push_back(std::make_unique<ParameterBuffer>(std::move(specs), buffer_options));
    return decoder.buffers.back().get();
  };

  ParameterBuffer* embedding =
      add_buffer("model.embed_tokens",
                 {Matrix("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size, spec.initializer_range)},
                 spec.tied_embeddings ? 2 : 1);
  decoder.units.push_back(std::make_unique<EmbeddingUnit>("model.embed_tokens", embedding));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    const std::string name = absl::StrCat("model.layers.", layer);
    decoder.units.push_back(std::make_unique<BlockUnit>(name, add_buffer(name, BlockParameters(spec, layer)), shared));
  }
  std::vector<ParameterSpec> head = {NormWeight("model.norm.weight", spec.hidden_size)};
  if (!spec.tied_embeddings)
    head.push_back(Matrix("lm_head.weight", spec.vocab_size, spec.hidden_size, spec.initializer_range));
  ParameterBuffer* head_buffer = add_buffer("head", std::move(head));
  decoder.units.push_back(std::make_unique<HeadUnit>("head", head_buffer,
                                                     spec.tied_embeddings ? embedding : head_buffer,
                                                     spec.tied_embeddings ? 0 : 1, spec.rms_norm_eps));
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
  example.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim));
  return example;
}

}  // namespace trireme
