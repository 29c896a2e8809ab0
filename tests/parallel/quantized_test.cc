// A quantized base is the same numbers on every layout, and training over it computes the same.
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

constexpr char kNf4[] =
    "model { head_dim: 16 intermediate_size: 512 quantization { method: NF4 } } precision { compute: FP32 }";
constexpr char kInt8[] =
    "model { head_dim: 16 intermediate_size: 512 quantization { method: INT8 skip_modules: 'model.layers.1.mlp' } }";

// Each gate, up and down by itself, and adapters on them.
constexpr char kExperts[] =
    "model { family: 'qwen3_moe' head_dim: 16 num_experts: 8 num_experts_per_tok: 2 moe_intermediate_size: 64 "
    "quantization { method: NF4 } } precision { compute: FP32 } adapter { r: 4 target_modules: 'q_proj' "
    "target_parameters: 'experts.gate_up_proj' target_parameters: 'experts.down_proj' }";

// The same, blocks of 32 in rows of 64 and 96.
constexpr char kMxfp4[] =
    "model { family: 'qwen3_moe' head_dim: 16 num_experts: 8 num_experts_per_tok: 2 moe_intermediate_size: 96 "
    "quantization { method: MXFP4 } } precision { compute: FP32 } adapter { r: 4 target_modules: 'q_proj' "
    "target_parameters: 'experts.gate_up_proj' target_parameters: 'experts.down_proj' }";

struct Held {
  Rectangle rectangle;
  at::Tensor values;
};

// What this rank multiplies with, by parameter. Collective over the gather groups.
std::map<std::string, Held> Dequantized(TinyRun& run) {
  std::map<std::string, Held> all;
  for (ParameterBuffer* buffer : run.model().buffers()) {
    if (!buffer->quantized()) continue;
    buffer->FinishUnshard();
    int64_t row = 0;
    at::Tensor group;
    for (int i = 0; i < static_cast<int>(buffer->specs().size()); ++i) {
      if (!buffer->specs()[i].fused_with_previous) {
        group = buffer->weight(i).full().data.clone();
        row = 0;
      }
      const Rectangle& r = buffer->rectangle(i);
      all[buffer->specs()[i].name] = {r, group.narrow(0, row, r.size[0])};
      row += r.size[0];
    }
    buffer->Reshard();
  }
  return all;
}

void ExpectSame(const char* base, const std::string& layout) {
  SCOPED_TRACE(layout);
  TinyRun alone({base}, /*alone=*/true), spread({base, layout});
  alone.Initialize();
  spread.Initialize();
  const std::map<std::string, Held> whole = Dequantized(alone), parts = Dequantized(spread);
  EXPECT_GE(whole.size(), 4u);
  for (const auto& [name, part] : parts) {
    const at::Tensor expected = whole.at(name)
                                    .values.narrow(0, part.rectangle.offset[0], part.rectangle.size[0])
                                    .narrow(1, part.rectangle.offset[1], part.rectangle.size[1]);
    EXPECT_TRUE(at::equal(part.values, expected)) << name << part.rectangle.ToString();
  }
  const double loss = alone.Evaluate(7);
  EXPECT_LT(std::abs(spread.Evaluate(7) / loss - 1), 1e-6);
  for (int step = 1; step <= 3; ++step) {
    const double reference = alone.Step();
    EXPECT_LT(std::abs(spread.Step() / reference - 1), 1e-5) << "step " << step;
  }
  EXPECT_LT(alone.Evaluate(1), loss) << "nothing was learned";
}

TEST(QuantizedBase, SameOnTwoRanks) {
  REQUIRE_RANKS(TestProcess().size() == 2, "two ranks");
  for (const char* base : {kNf4, kInt8}) {
    ExpectSame(base, "parallel { tensor: 2 }");
    ExpectSame(base, "parallel { pipeline: 2 }");
    ExpectSame(base, "parallel { context: 2 }");
    for (const char* level : {"NONE", "OPTIMIZER", "GRADIENTS", "PARAMETERS"})
      ExpectSame(base, absl::StrCat("parallel { shard: ", level, " }"));
    ExpectSame(base, "parallel { shard: PARAMETERS } recompute { policy: BLOCK }");
  }
}

TEST(QuantizedBase, ExpertsAreTheSameOnAnyRanks) {
  const int ranks = TestProcess().size();
  REQUIRE_RANKS(ranks == 2 || ranks == 4, "two or four ranks");
  for (const char* level : {"OPTIMIZER", "PARAMETERS"}) {
    for (const char* base : {kExperts, kMxfp4})
      ExpectSame(base, absl::StrCat("parallel { expert: 2 shard: ", level, " }"));
    if (ranks == 4) ExpectSame(kExperts, absl::StrCat("parallel { expert: 4 tensor: 2 shard: ", level, " }"));
  }
}

TEST(QuantizedBase, SameOnMoreRanks) {
  const int ranks = TestProcess().size();
  REQUIRE_RANKS(ranks == 4 || ranks == 8, "four or eight ranks");
  ExpectSame(kNf4, "parallel { tensor: 2 shard: PARAMETERS }");
  ExpectSame(kNf4, "parallel { tensor: 2 pipeline: 2 shard: PARAMETERS }");
  ExpectSame(kInt8, "parallel { tensor: 4 }");
  if (ranks == 8) ExpectSame(kNf4, "parallel { tensor: 2 pipeline: 2 context: 2 shard: PARAMETERS }");
}

TEST(QuantizedBase, PackedBytesAreWhatIsStoredAndGathered) {
  REQUIRE_RANKS(TestProcess().size() == 2, "two ranks");
  TinyRun run({kNf4, "parallel { shard: PARAMETERS }"});
  int64_t parameters = 0, bytes = 0;
  for (const ParameterBuffer* buffer : run.model().buffers()) {
    if (!buffer->quantized()) continue;
    EXPECT_EQ(buffer->own_compute().scalar_type(), at::kByte);
    parameters += buffer->num_parameters();
    bytes += buffer->own_compute().numel();
  }
  EXPECT_LT(static_cast<double>(bytes), 0.5 * 0.517 * static_cast<double>(parameters));
}

}  // namespace
}  // namespace trireme
