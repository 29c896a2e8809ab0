#include "models/parts/latent_attention.h"

#include "kernels/base/cpu_allocator.h"
#include "models/parts/projections.h"
#include "parallel/comm/mpi_group.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

constexpr char kLatentQ[] = "self_attn.q_proj", kQDown[] = "self_attn.q_a_proj",
               kLatentQNorm[] = "self_attn.q_a_layernorm", kQUp[] = "self_attn.q_b_proj",
               kKvDown[] = "self_attn.kv_a_proj_with_mqa", kKvNorm[] = "self_attn.kv_a_layernorm",
               kKvUp[] = "self_attn.kv_b_proj", kLatentO[] = "self_attn.o_proj";

class LatentAttentionPart final : public BlockPart {
 public:
  explicit LatentAttentionPart(const LatentAttentionSettings& settings)
      : s_(settings), alone_(MakeSelfGroup("own rows")) {}

  std::vector<ParameterSpec> Parameters(const PartPlace& place) const override {
    Projections made(place);
    const NormSpec norm = {.eps = s_.eps};
    if (s_.query_rank > 0) {
      made.AddShared(kQDown, s_.query_rank, s_.bias);
      made.AddNorm(kLatentQNorm, norm, s_.query_rank, 0);
      made.AddRows({{kQUp, s_.heads * Width(), s_.heads, s_.query_rank}}, /*bias=*/false);
    } else {
      made.AddRows({{kLatentQ, s_.heads * Width(), s_.heads}}, /*bias=*/false);
    }
    made.AddShared(kKvDown, s_.latent_rank + s_.head.turning, s_.bias);
    made.AddNorm(kKvNorm, norm, s_.latent_rank, 0);
    made.AddRows({{kKvUp, s_.heads * (s_.head.still + s_.head.value), s_.heads, s_.latent_rank}}, /*bias=*/false);
    made.AddColumns(kLatentO, s_.heads * s_.head.value, s_.bias);
    return made.Take();
  }

  at::Tensor Forward(const PartCall& call) const override {
    const PartWeights& weights = call.weights;
    ProcessGroup& tensor = *call.shared.tensor;
    const at::Tensor rows = call.input.Rows();
    at::Tensor query_rows = rows;
    if (s_.query_rank > 0) query_rows = Normed(Narrow(call, rows, kQDown), weights, kLatentQNorm);
    const at::Tensor q = Product(call, query_rows, s_.query_rank > 0 ? kQUp : kLatentQ);
    const at::Tensor narrow = Narrow(call, rows, kKvDown);
    const at::Tensor latent = Normed(narrow.narrow(1, 0, s_.latent_rank).contiguous(), weights, kKvNorm);
    const at::Tensor shared = AllRows(narrow.narrow(1, s_.latent_rank, s_.head.turning), tensor);
    const at::Tensor attended = LatentAttention(q, Product(call, latent, kKvUp), shared, s_.head, Arguments(call));
    return Linear(attended, weights.At(absl::StrCat(kLatentO, ".weight")), tensor, call.residual(),
                  weights.Find(absl::StrCat(kLatentO, ".bias")));
  }

  PartMemory Memory(const RankSizes& sizes) const override {
    const int64_t heads = s_.heads / sizes.tensor, rows = sizes.tokens / sizes.tensor;
    const auto bytes = [&](int64_t count, int64_t width) { return CpuBlockBytes(count * width * sizes.element_size); };
    PartMemory memory;
    memory.kept[kKeepAttention] = bytes(sizes.tokens, heads * s_.head.value) + CpuBlockBytes(sizes.tokens * heads * 4);
    memory.saved = bytes(sizes.tokens, heads * Width()) + bytes(sizes.tokens, heads * (s_.head.still + s_.head.value)) +
                   bytes(sizes.tokens, s_.head.turning) + 2 * bytes(rows, s_.query_rank) +
                   2 * bytes(rows, s_.latent_rank + s_.head.turning) + bytes(rows, sizes.hidden_size);
    memory.moment = 3 * bytes(sizes.tokens, heads * Width());
    return memory;
  }

  void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const override {
    if (s_.heads % mesh[Axis::kTensor] != 0)
      problems->push_back(absl::StrCat("parallel.tensor: ", mesh[Axis::kTensor],
                                       " does not divide model.num_attention_heads ", s_.heads));
  }

  std::optional<AttentionShape> attention() const override {
    AttentionShape shape;
    shape.heads = shape.kv_heads = s_.heads;
    shape.head_dim = Width();
    shape.value_dim = s_.head.value;
    shape.scale = s_.scale;
    shape.rotation = s_.rotation;
    return shape;
  }

 private:
  int64_t Width() const { return s_.head.still + s_.head.turning; }  // of a query

  // What a matrix that every rank has whole makes of this rank's rows.
  at::Tensor Narrow(const PartCall& call, const at::Tensor& rows, const char* name) const {
    return ColumnLinear(rows, call.weights.At(absl::StrCat(name, ".weight")),
                        call.weights.Find(absl::StrCat(name, ".bias")), *alone_, /*kept=*/nullptr, /*name=*/nullptr);
  }
  // This rank's heads of all rows.
  static at::Tensor Product(const PartCall& call, const at::Tensor& rows, const char* name) {
    return ColumnLinear(rows, call.weights.At(absl::StrCat(name, ".weight")), nullptr, *call.shared.tensor,
                        /*kept=*/nullptr, /*name=*/nullptr);
  }
  at::Tensor Normed(const at::Tensor& rows, const PartWeights& weights, const char* name) const {
    return Norm(rows, weights.At(absl::StrCat(name, ".weight")), s_.eps);
  }

  SelfAttentionArguments Arguments(const PartCall& call) const {
    const MicrobatchTensors& batch = *call.context.batch;
    SelfAttentionArguments attention = {};
    attention.heads = s_.heads / call.shared.tensor->size();
    attention.positions = batch.rotary_positions.defined() ? batch.rotary_positions : batch.positions;
    attention.rope = &call.shared.rotations->Of(s_.rotation);
    attention.cu_seqlens = batch.cu_seqlens;
    attention.max_seqlen = batch.max_seqlen;
    attention.backend = &call.shared.attention;
    attention.context = batch.contexts.empty() ? nullptr : batch.contexts.at(0).get();
    if (call.context.cache != nullptr) attention.cache = &call.context.cache->layer(call.block);
    attention.kept = call.context.kept;
    attention.scale = s_.scale;
    return attention;
  }

  const LatentAttentionSettings s_;
  const std::shared_ptr<ProcessGroup> alone_;
};

}  // namespace

std::shared_ptr<const BlockPart> MakeLatentAttention(const LatentAttentionSettings& settings) {
  return std::make_shared<LatentAttentionPart>(settings);
}

}  // namespace trireme
