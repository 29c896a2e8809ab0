#include "models/parts/feed_forward.h"

#include <cmath>

#include "kernels/base/cpu_allocator.h"
#include "models/parts/projections.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

constexpr char kGate[] = "mlp.gate_proj", kUp[] = "mlp.up_proj", kDown[] = "mlp.down_proj",
               kAlphaP[] = "mlp.act_fn.alpha_p", kAlphaN[] = "mlp.act_fn.alpha_n", kBeta[] = "mlp.act_fn.beta",
               kEps[] = "mlp.act_fn.eps";

class FeedForward final : public BlockPart {
 public:
  explicit FeedForward(const FeedForwardSettings& settings) : s_(settings) {}

  std::vector<ParameterSpec> Parameters(const PartPlace& place) const override {
    Projections made(place);
    if (s_.gated) {
      made.AddRows({{kGate, s_.width}, {kUp, s_.width}}, s_.bias);
    } else {
      made.AddRows({{kUp, s_.width}}, s_.bias);
    }
    if (s_.xielu) {
      // As the paper begins: slopes of 0.8 on both sides, of which beta is a part on the left.
      made.AddNumber(kAlphaP, std::log(std::expm1(0.8)), /*trainable=*/true);
      made.AddNumber(kAlphaN, std::log(std::expm1(0.8 - 0.5)), /*trainable=*/true);
      made.AddNumber(kBeta, 0.5, /*trainable=*/false);
      made.AddNumber(kEps, -1e-6, /*trainable=*/false);
    }
    made.AddColumns(kDown, s_.width, s_.bias);
    return made.Take();
  }

  at::Tensor Forward(const PartCall& call) const override {
    const PartWeights& weights = call.weights;
    ProcessGroup& tensor = *call.shared.tensor;
    const char* first = s_.gated ? kGate : kUp;
    const at::Tensor up = call.input.Multiply(weights.At(absl::StrCat(first, ".weight")),
                                              weights.Find(absl::StrCat(first, ".bias")), kKeepGateUp);
    Weight& down = weights.At(absl::StrCat(kDown, ".weight"));
    Weight* bias = weights.Find(absl::StrCat(kDown, ".bias"));
    if (s_.gated) return GatedLinear(up, s_.activation, down, tensor, call.residual(), bias);
    if (s_.xielu) {
      const XieluWeights learned = {&weights.At(kAlphaP), &weights.At(kAlphaN), &weights.At(kBeta), &weights.At(kEps)};
      return Linear(Xielu(up, learned), down, tensor, call.residual(), bias);
    }
    return Linear(Activate(up, s_.activation), down, tensor, call.residual(), bias);
  }

  PartMemory Memory(const RankSizes& sizes) const override {
    PartMemory memory;
    const int64_t rows = sizes.tokens * s_.width / sizes.tensor;
    memory.kept[kKeepGateUp] = CpuBlockBytes((s_.gated ? 2 : 1) * rows * sizes.element_size);
    if (!s_.gated) memory.saved = memory.kept[kKeepGateUp];  // what the activation made of it
    memory.moment = CpuBlockBytes(2 * rows * sizes.element_size);
    return memory;
  }

  void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const override {
    const int tensor = mesh[Axis::kTensor];
    if (s_.width % tensor != 0)
      problems->push_back(
          absl::StrCat("parallel.tensor: ", tensor, " does not divide model.intermediate_size ", s_.width));
  }

 private:
  const FeedForwardSettings s_;
};

}  // namespace

std::shared_ptr<const BlockPart> MakeFeedForward(const FeedForwardSettings& settings) {
  return std::make_shared<FeedForward>(settings);
}

}  // namespace trireme
