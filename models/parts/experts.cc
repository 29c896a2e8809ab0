#include "models/parts/experts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/sigmoid.h>

#include "kernels/base/cpu_allocator.h"
#include "models/parts/projections.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

constexpr char kRouter[] = "mlp.gate", kCorrection[] = "mlp.gate.e_score_correction_bias",
               kExpertGateUp[] = "mlp.experts.gate_up_proj", kExpertDown[] = "mlp.experts.down_proj",
               kSharedGate[] = "mlp.shared_expert_gate", kSharedGateProj[] = "mlp.shared_expert.gate_proj",
               kSharedUp[] = "mlp.shared_expert.up_proj", kSharedDown[] = "mlp.shared_expert.down_proj";

class Experts final : public BlockPart {
 public:
  explicit Experts(const ExpertsSettings& settings) : s_(settings) {}

  std::vector<ParameterSpec> Parameters(const PartPlace& place) const override {
    const int64_t experts = s_.routing.experts, hidden = place.hidden_size;
    Projections made(place);
    made.AddRouter(kRouter, experts, s_.bias);
    if (s_.correction) made.AddCorrection(kCorrection, experts);
    const Projections::Experts of = {experts, static_cast<double>(s_.routing.per_token) / static_cast<double>(experts)};
    // Gate and up are two matrices, unless they lie in turn.
    made.AddExperts(kExpertGateUp, s_.gate.clamped.has_value() ? 1 : 2, of, 2 * s_.width, hidden, place.deviation,
                    s_.bias);
    made.AddExperts(kExpertDown, 1, of, hidden, s_.width, place.residual_deviation, s_.bias);
    if (s_.shared_width > 0) {
      made.AddRows({{kSharedGateProj, s_.shared_width}, {kSharedUp, s_.shared_width}}, /*bias=*/false);
      made.AddColumns(kSharedDown, s_.shared_width, /*bias=*/false);
      if (s_.shared_gate) made.AddRouter(kSharedGate, 1);
    }
    return made.Take();
  }

  at::Tensor Forward(const PartCall& call) const override {
    const PartWeights& weights = call.weights;
    ProcessGroup& expert = *call.shared.expert;
    const at::Tensor rows = call.input.Rows();
    const Routing routing =
        Route(rows, weights.At(absl::StrCat(kRouter, ".weight")), weights.Find(absl::StrCat(kRouter, ".bias")),
              weights.Find(kCorrection), s_.routing, call.context.kept);
    const ExpertWeights own = {&weights.At(absl::StrCat(kExpertGateUp, ".weight")),
                               &weights.At(absl::StrCat(kExpertDown, ".weight")),
                               s_.routing.experts / expert.size(),
                               s_.width,
                               weights.Find(absl::StrCat(kExpertGateUp, ".bias")),
                               weights.Find(absl::StrCat(kExpertDown, ".bias"))};
    at::Tensor result = RunExperts(rows, routing, own, s_.gate, expert);
    if (call.context.loads != nullptr) {
      const MicrobatchTensors& batch = *call.context.batch;
      const bool first_pass = call.context.kept == nullptr || call.context.kept->recording;
      result =
          call.context.loads->Account(call.block, result, routing, {batch.is_token, batch.sequence_tokens, first_pass});
    }
    if (s_.shared_width > 0) result = result + Shared(call, rows);
    const at::Tensor residual = call.residual();
    return residual.defined() ? residual + result : result;
  }

  PartMemory Memory(const RankSizes& sizes) const override {
    PartMemory memory;
    const int64_t rows = sizes.tokens / sizes.tensor * s_.routing.per_token;  // where loads are equal
    memory.saved = CpuBlockBytes(2 * rows * s_.width * sizes.element_size) +
                   CpuBlockBytes(2 * sizes.tokens / sizes.tensor * s_.routing.experts * 4);
    memory.moment = CpuBlockBytes(rows * sizes.hidden_size * sizes.element_size) * 2 + memory.saved;
    if (s_.shared_width > 0) {
      memory.kept[kKeepGateUp] = CpuBlockBytes(2 * sizes.tokens * s_.shared_width / sizes.tensor * sizes.element_size);
    }
    return memory;
  }

  void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const override {
    if (s_.routing.experts % mesh.expert != 0)
      problems->push_back(absl::StrCat("parallel.expert: ", mesh.expert, " does not divide the ", s_.routing.experts,
                                       " experts of the model"));
    if (s_.shared_width % mesh[Axis::kTensor] != 0)
      problems->push_back(absl::StrCat("parallel.tensor: ", mesh[Axis::kTensor],
                                       " does not divide the shared expert's width ", s_.shared_width));
  }

 private:
  at::Tensor Shared(const PartCall& call, const at::Tensor& rows) const {
    const PartWeights& weights = call.weights;
    ProcessGroup& tensor = *call.shared.tensor;
    const at::Tensor gate_up = ColumnLinear(rows, weights.At(absl::StrCat(kSharedGateProj, ".weight")), nullptr, tensor,
                                            call.context.kept, kKeepGateUp);
    const at::Tensor made =
        GatedLinear(gate_up, s_.gate.activation, weights.At(absl::StrCat(kSharedDown, ".weight")), tensor);
    if (!s_.shared_gate) return made;
    return (made * at::sigmoid(RouterLogits(rows, weights.At(absl::StrCat(kSharedGate, ".weight")))))
        .to(made.scalar_type());
  }

  const ExpertsSettings s_;
};

}  // namespace

std::shared_ptr<const BlockPart> MakeExperts(const ExpertsSettings& settings) {
  return std::make_shared<Experts>(settings);
}

constexpr int64_t kMaxExperts = 8192;

void CheckExperts(const ExpertsSettings& s, std::vector<std::string>* problems) {
  const RoutingRule& r = s.routing;
  // A table of weights names each expert of a layer: no file may claim so many that it fills the memory.
  if (r.experts < 1 || r.experts > kMaxExperts) {
    problems->push_back(
        absl::StrCat("model.num_experts: a layer has ", r.experts, " experts; it may have 1 to ", kMaxExperts));
    return;
  }
  if (r.per_token < 1 || r.per_token > r.experts)
    problems->push_back(absl::StrCat("model.num_experts_per_tok: is ", r.per_token, "; give 1 to ", r.experts,
                                     ", the number of experts"));
  if (s.width < 1)
    problems->push_back(absl::StrCat("model.moe_intermediate_size: is ", s.width, "; give the width of an expert"));
  if (r.groups == 1 && r.chosen_groups == 1) return;
  if (r.groups < 1 || r.chosen_groups < 1 || r.chosen_groups > r.groups ||
      r.experts % std::max<int64_t>(1, r.groups) != 0 ||
      r.per_token > r.experts / std::max<int64_t>(1, r.groups) * r.chosen_groups)
    problems->push_back(absl::StrCat("model.n_group, topk_group: ", r.groups, " groups of ", r.experts,
                                     " experts, of which ", r.chosen_groups, " are chosen for ", r.per_token,
                                     " experts, do not fit; n_group divides the experts, and the chosen hold enough"));
}

}  // namespace trireme
