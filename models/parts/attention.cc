#include "models/parts/attention.h"

#include <ATen/ops/clamp.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/cpu_allocator.h"
#include "models/parts/projections.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

constexpr char kQ[] = "self_attn.q_proj", kK[] = "self_attn.k_proj", kV[] = "self_attn.v_proj",
               kO[] = "self_attn.o_proj", kQNorm[] = "self_attn.q_norm", kKNorm[] = "self_attn.k_norm",
               kSinks[] = "self_attn.sinks";

class Attention final : public BlockPart {
 public:
  explicit Attention(const AttentionSettings& settings) : s_(settings) {}

  std::vector<ParameterSpec> Parameters(const PartPlace& place) const override {
    const int64_t q = s_.heads * s_.head_dim, kv = s_.kv_heads * s_.head_dim;
    Projections made(place);
    made.AddRows({{kQ, q, s_.heads}, {kK, kv, s_.kv_heads}, {kV, kv, s_.kv_heads}}, s_.qkv_bias);
    if (s_.head_norm.has_value()) {
      AddHeadNorm(kQNorm, s_.heads, &made);
      AddHeadNorm(kKNorm, s_.kv_heads, &made);
    }
    if (s_.sinks) made.AddHeadNumbers(kSinks, s_.heads);
    made.AddColumns(kO, q, s_.output_bias);
    return made.Take();
  }

  at::Tensor Forward(const PartCall& call) const override {
    const PartWeights& weights = call.weights;
    ProcessGroup& tensor = *call.shared.tensor;
    SelfAttentionArguments attention = Arguments(call);
    at::Tensor qkv =
        call.input.Multiply(weights.At(absl::StrCat(kQ, ".weight")), weights.Find(absl::StrCat(kQ, ".bias")), kKeepQkv);
    if (s_.clip > 0 && !s_.clip_after_norm) qkv = at::clamp(qkv, -s_.clip, s_.clip);
    if (s_.head_norm.has_value()) {
      if (s_.head_norm->after_rotation) {
        qkv = Rotate(qkv, attention);
        attention.rope = nullptr;
      }
      qkv = Normed(qkv, attention, weights, tensor);
    }
    if (s_.clip > 0 && s_.clip_after_norm) qkv = at::clamp(qkv, -s_.clip, s_.clip);
    const at::Tensor attended = SelfAttention(qkv, attention);
    return Linear(attended, weights.At(absl::StrCat(kO, ".weight")), tensor, call.residual(),
                  weights.Find(absl::StrCat(kO, ".bias")));
  }

  PartMemory Memory(const RankSizes& sizes) const override {
    const int64_t heads = s_.heads / sizes.tensor, kv_heads = std::max<int64_t>(1, s_.kv_heads / sizes.tensor);
    const int64_t q = heads * s_.head_dim, kv = kv_heads * s_.head_dim;
    PartMemory memory;
    memory.kept[kKeepQkv] = CpuBlockBytes(sizes.tokens * (q + 2 * kv) * sizes.element_size);
    memory.kept[kKeepAttention] =
        CpuBlockBytes(sizes.tokens * q * sizes.element_size) + CpuBlockBytes(sizes.tokens * heads * 4);
    memory.moment = CpuBlockBytes(sizes.tokens * (s_.heads + 2 * s_.kv_heads) * s_.head_dim * sizes.element_size);
    return memory;
  }

  void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const override {
    const int tensor = mesh[Axis::kTensor];
    if (s_.heads % tensor != 0)
      problems->push_back(
          absl::StrCat("parallel.tensor: ", tensor, " does not divide model.num_attention_heads ", s_.heads));
    if (s_.kv_heads % tensor != 0 && tensor % s_.kv_heads != 0)
      problems->push_back(absl::StrCat("parallel.tensor: ", tensor, " and model.num_key_value_heads ", s_.kv_heads,
                                       ": one must divide the other"));
  }

  std::optional<AttentionShape> attention() const override {
    AttentionShape shape;
    shape.heads = s_.heads;
    shape.kv_heads = s_.kv_heads;
    shape.head_dim = shape.value_dim = s_.head_dim;
    shape.window = s_.window;
    shape.scale = s_.scale;
    shape.softcap = s_.softcap;
    shape.alibi = s_.alibi;
    shape.rotation = s_.rotation;
    return shape;
  }

 private:
  void AddHeadNorm(const char* name, int64_t heads, Projections* made) const {
    const bool whole = s_.head_norm->extent != HeadNormSpec::kHead;
    made->AddNorm(name, s_.head_norm->norm, whole ? heads * s_.head_dim : s_.head_dim, whole ? heads : 0);
  }

  at::Tensor Normed(const at::Tensor& qkv, const SelfAttentionArguments& attention, const PartWeights& weights,
                    ProcessGroup& tensor) const {
    HeadNormArguments norm;
    norm.heads = attention.heads;
    norm.kv_heads = attention.kv_heads;
    norm.layer_norm = s_.head_norm->norm.kind == NormSpec::kLayer;
    norm.whole_width = s_.head_norm->extent == HeadNormSpec::kAllHeads;
    norm.eps = s_.head_norm->norm.eps;
    norm.offset = s_.head_norm->norm.offset;
    norm.q_weight = weights.Find(absl::StrCat(kQNorm, ".weight"));
    norm.k_weight = weights.Find(absl::StrCat(kKNorm, ".weight"));
    norm.q_bias = weights.Find(absl::StrCat(kQNorm, ".bias"));
    norm.k_bias = weights.Find(absl::StrCat(kKNorm, ".bias"));
    return HeadNorm(qkv, norm, tensor);
  }

  SelfAttentionArguments Arguments(const PartCall& call) const {
    const int64_t ranks = call.shared.tensor->size();
    const MicrobatchTensors& batch = *call.context.batch;
    KeptResults* kept = call.context.kept;
    SelfAttentionArguments attention;
    attention.heads = s_.heads / ranks;
    attention.kv_heads = std::max<int64_t>(1, s_.kv_heads / ranks);
    attention.head_dim = s_.head_dim;
    attention.positions = batch.rotary_positions.defined() ? batch.rotary_positions : batch.positions;
    attention.rope = s_.rotation.has_value() ? &call.shared.rotations->Of(*s_.rotation) : nullptr;
    attention.cu_seqlens = batch.cu_seqlens;
    attention.max_seqlen = batch.max_seqlen;
    attention.window = s_.window;
    attention.backend = &call.shared.attention;
    attention.context = batch.contexts.empty() ? nullptr : batch.contexts.at(s_.window).get();
    if (s_.sinks) attention.sinks = &call.weights.At(kSinks);
    if (call.context.cache != nullptr) attention.cache = &call.context.cache->layer(call.block);
    attention.kept = kept;
    // Normed or clipped heads are a copy: what was kept is from before.
    const bool copied = s_.head_norm.has_value() || s_.clip > 0;
    attention.rotated = !copied && kept != nullptr && kept->Has(kKeepQkv);
    attention.scale = s_.scale;
    attention.softcap = s_.softcap;
    if (s_.alibi)
      attention.slopes = call.shared.rotations->Slopes(s_.heads).narrow(0, call.shared.tensor->rank() * attention.heads,
                                                                        attention.heads);
    return attention;
  }

  const AttentionSettings s_;
};

}  // namespace

std::shared_ptr<const BlockPart> MakeAttention(const AttentionSettings& settings) {
  return std::make_shared<Attention>(settings);
}

}  // namespace trireme
