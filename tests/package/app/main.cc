// Trireme with one more family and one more attention backend. The family is Llama with a feed-forward of its own; the
// backend copies a built-in one, under another name.
#include "trainer/main.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/sin.h>

#include "models/parts/draft.h"
#include "models/parts/projections.h"
#include "parallel/layers/functions.h"

namespace {

using namespace trireme;

constexpr char kUp[] = "mlp.up_proj", kDown[] = "mlp.down_proj";

// down(a(up(x))) with a(u) = u + sin^2 u, "Snake" (arXiv 2006.08195), in plain libtorch, whose autograd sees it.
class SnakeFeedForward final : public BlockPart {
 public:
  explicit SnakeFeedForward(int64_t width) : width_(width) {}

  std::vector<ParameterSpec> Parameters(const PartPlace& place) const override {
    Projections made(place);
    made.AddRows({{kUp, width_}}, /*bias=*/false);
    made.AddColumns(kDown, width_, /*bias=*/false);
    return made.Take();
  }

  at::Tensor Forward(const PartCall& call) const override {
    const at::Tensor up = call.input.Multiply(call.weights.At("mlp.up_proj.weight"), nullptr, kKeepGateUp);
    const at::Tensor sine = at::sin(up);
    return Linear(up + sine * sine, call.weights.At("mlp.down_proj.weight"), *call.shared.tensor, call.residual());
  }

  PartMemory Memory(const RankSizes& sizes) const override {
    const int64_t bytes = sizes.tokens * width_ / sizes.tensor * sizes.element_size;
    PartMemory memory;
    memory.kept[kKeepGateUp] = bytes;
    memory.saved = 2 * bytes;
    memory.moment = 2 * bytes;
    return memory;
  }

  void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const override {
    if (width_ % mesh[Axis::kTensor] != 0)
      problems->push_back("parallel.tensor: does not divide model.intermediate_size " + std::to_string(width_));
  }

 private:
  const int64_t width_;
};

DecoderSpec SpecifyOutrigger(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  const auto snake = std::make_shared<const SnakeFeedForward>(draft.feed_forward.width);
  draft.make_feed_forward = [snake](int64_t) { return snake; };
  return draft.Build(problems);
}

Extensions MakeExtensions() {
  Extensions extensions;
  extensions.families.push_back({"outrigger",
                                 &SpecifyOutrigger,
                                 {},
                                 {{.model_type = "outrigger",
                                   .architecture = "OutriggerForCausalLM",
                                   .family = "outrigger",
                                   .max_position_embeddings = 2048}}});
  AttentionBackend attention = MathAttention();
  attention.name = "outrigger_math";
  extensions.attention_backends.push_back(attention);
  return extensions;
}

}  // namespace

int main(int argc, char** argv) { return trireme::Main(argc, argv, MakeExtensions()); }
