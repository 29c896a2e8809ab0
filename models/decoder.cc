#include "models/decoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "parallel/comm/mpi_group.h"
#include "parallel/layers/functions.h"

namespace trireme {
namespace {

constexpr char kEmbeddingName[] = "model.embed_tokens";

// What all blocks share.
struct Shared {
  DecoderSpec spec;
  AttentionBackend attention;
  RopeTable rope;
  std::shared_ptr<ProcessGroup> tensor;
};

class EmbeddingUnit final : public Unit {
 public:
  EmbeddingUnit(std::string name, ParameterBuffer* buffer, std::shared_ptr<const Shared> shared)
      : name_(std::move(name)), buffers_({buffer}), shared_(std::move(shared)) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }
  bool backward_reads_parameters() const override { return false; }
  Carry Forward(const UnitContext& context, Carry, const at::Tensor& anchor) override {
    return {Embedding(context.batch->tokens, buffers_[0]->weight(0), *shared_->tensor, anchor)};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  std::shared_ptr<const Shared> shared_;
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
    ProcessGroup& tensor = *shared_->tensor;
    KeptResults* kept = context.kept;
    SelfAttentionArguments attention;
    attention.heads = spec.num_heads / tensor.size();
    attention.kv_heads = std::max<int64_t>(1, spec.num_kv_heads / tensor.size());
    attention.head_dim = spec.head_dim;
    attention.positions = context.batch->positions;
    attention.rope = &shared_->rope;
    attention.cu_seqlens = context.batch->cu_seqlens;
    attention.max_seqlen = context.batch->max_seqlen;
    attention.window = spec.sliding_window;
    attention.backend = &shared_->attention;
    attention.context = context.batch->context.get();
    if (context.cache != nullptr) attention.cache = &context.cache->layer(name_);
    attention.kept = kept;
    attention.rotated = kept != nullptr && kept->Has(kKeepQkv);

    const at::Tensor& x = input[0];  // [this tensor rank's tokens, hidden]
    const at::Tensor qkv =
        NormLinear(x, at::Tensor(), p.weight(kInputNorm), spec.rms_norm_eps, p.weight(kQ), tensor, kept, kKeepQkv)
            .second;
    const at::Tensor attended = Linear(SelfAttention(qkv, attention), p.weight(kO), tensor);
    const auto [h, gate_up] =
        NormLinear(x, attended, p.weight(kPostNorm), spec.rms_norm_eps, p.weight(kGate), tensor, kept, kKeepGateUp);
    return {SwiGluLinear(gate_up, p.weight(kDown), tensor, /*residual=*/h)};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  std::shared_ptr<const Shared> shared_;
};

class HeadUnit final : public Unit {
 public:
  HeadUnit(std::string name, ParameterBuffer* norm, ParameterBuffer* head, int head_index,
           std::shared_ptr<const Shared> shared)
      : name_(std::move(name)),
        buffers_(norm == head ? std::vector<ParameterBuffer*>{norm} : std::vector<ParameterBuffer*>{norm, head}),
        norm_(norm->weight(0)),
        head_(head->weight(head_index)),
        shared_(std::move(shared)) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }

  Carry Forward(const UnitContext& context, Carry input, const at::Tensor&) override {
    if (context.phase == Phase::kGenerate) {
      return {Logits(Norm(input[0], norm_, shared_->spec.rms_norm_eps), head_, shared_->spec.vocab_size,
                     context.batch->wanted, *shared_->tensor)};
    }
    LossHeadOptions options;
    options.scale = context.loss_scale;
    options.z_loss = context.z_loss;
    options.chunk_tokens = context.loss_chunk_tokens;
    options.with_gradient = context.phase == Phase::kTrain;
    const DecoderSpec& spec = shared_->spec;
    const HeadLoss loss = CrossEntropyHead(Norm(input[0], norm_, spec.rms_norm_eps), head_, spec.vocab_size,
                                           context.batch->targets, *shared_->tensor, options);
    context.loss_sums->add_(loss.sums);
    return {loss.seed};
  }

 private:
  std::string name_;
  std::vector<ParameterBuffer*> buffers_;
  Weight& norm_;
  Weight& head_;
  std::shared_ptr<const Shared> shared_;
};

ParameterSpec Matrix(const std::string& name, int64_t rows, int64_t columns, double deviation, Placement placement) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {rows, columns};
  spec.standard_deviation = deviation;
  spec.placement = placement;
  return spec;
}

// Heads of head_dim rows, fused with the projection before.
ParameterSpec FusedHeads(ParameterSpec matrix, int64_t heads) {
  matrix.heads = heads;
  matrix.fused_with_previous = true;
  return matrix;
}

ParameterSpec Fused(ParameterSpec matrix) {
  matrix.fused_with_previous = true;
  return matrix;
}

ParameterSpec NormWeight(const std::string& name, int64_t width) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = {width};
  spec.initialization = Initialization::kOnes;
  spec.decay = false;
  return spec;
}

std::vector<ParameterSpec> EmbeddingParameters(const DecoderSpec& s) {
  return {Matrix(absl::StrCat(kEmbeddingName, ".weight"), s.vocab_size, s.hidden_size, s.initializer_range,
                 Placement::kVocabulary)};
}

std::vector<ParameterSpec> HeadParameters(const DecoderSpec& s) {
  std::vector<ParameterSpec> head = {NormWeight("model.norm.weight", s.hidden_size)};
  if (!s.tied_embeddings)
    head.push_back(Matrix("lm_head.weight", s.vocab_size, s.hidden_size, s.initializer_range, Placement::kVocabulary));
  return head;
}

std::vector<ParameterSpec> BlockParameters(const DecoderSpec& s, int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const int64_t h = s.hidden_size, q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
  const int64_t f = s.intermediate_size;
  const double deviation = s.initializer_range;
  const double residual = s.scaled_residual_init ? deviation / std::sqrt(2.0 * s.num_layers) : deviation;
  constexpr Placement kRows = Placement::kRows, kColumns = Placement::kColumns;
  return {
      NormWeight(prefix + "input_layernorm.weight", h),
      Matrix(prefix + "self_attn.q_proj.weight", q, h, deviation, kRows),
      FusedHeads(Matrix(prefix + "self_attn.k_proj.weight", kv, h, deviation, kRows), s.num_kv_heads),
      FusedHeads(Matrix(prefix + "self_attn.v_proj.weight", kv, h, deviation, kRows), s.num_kv_heads),
      Matrix(prefix + "self_attn.o_proj.weight", h, q, residual, kColumns),
      NormWeight(prefix + "post_attention_layernorm.weight", h),
      Matrix(prefix + "mlp.gate_proj.weight", f, h, deviation, kRows),
      Fused(Matrix(prefix + "mlp.up_proj.weight", f, h, deviation, kRows)),
      Matrix(prefix + "mlp.down_proj.weight", h, f, residual, kColumns),
  };
}

}  // namespace

std::vector<ParameterSpec> DecoderParameters(const DecoderSpec& spec) {
  std::vector<ParameterSpec> all = EmbeddingParameters(spec);
  const auto append = [&](const std::vector<ParameterSpec>& specs) {
    all.insert(all.end(), specs.begin(), specs.end());
  };
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) append(BlockParameters(spec, layer));
  append(HeadParameters(spec));
  return all;
}

DecoderUnits BuildDecoder(const DecoderSpec& spec, const BufferOptions& options, const AttentionBackend& attention,
                          const UnitRange& range) {
  DecoderUnits decoder;
  auto shared = std::make_shared<Shared>();
  shared->spec = spec;
  shared->attention = attention;
  shared->rope = MakeRopeTable(spec, spec.max_positions, ArithmeticType(options.compute), options.device);
  shared->tensor = options.tensor_group != nullptr ? options.tensor_group : MakeSelfGroup("alone");
  const auto has = [&](int64_t unit) { return unit >= range.begin && unit < range.end; };
  const bool first = has(0), last = has(spec.num_layers + 1);
  const auto add_buffer = [&](const std::string& name, std::vector<ParameterSpec> specs, int uses = 1) {
    BufferOptions buffer_options = options;
    buffer_options.name = name;
    buffer_options.uses = uses;
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
  if (first) decoder.units.push_back(std::make_unique<EmbeddingUnit>(kEmbeddingName, embedding, shared));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    if (!has(layer + 1)) continue;
    const std::string name = absl::StrCat("model.layers.", layer);
    decoder.units.push_back(std::make_unique<BlockUnit>(name, add_buffer(name, BlockParameters(spec, layer)), shared));
  }
  if (last) {
    ParameterBuffer* head_buffer = add_buffer("head", HeadParameters(spec));
    decoder.units.push_back(std::make_unique<HeadUnit>(
        "head", head_buffer, spec.tied_embeddings ? embedding : head_buffer, spec.tied_embeddings ? 0 : 1, shared));
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
  example.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim));
  return example;
}

}  // namespace trireme
