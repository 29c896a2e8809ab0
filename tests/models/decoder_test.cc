// The decoder as a whole: who sees whom, what its parameters are called, and where its positions come from.
#include "models/blocks/decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "models/spec/family.h"
#include "tests/models/tiny_decoder.h"

namespace trireme {
namespace {

// The loss of each token, one evaluation per token with all other targets ignored.
std::vector<double> TokenLosses(Stage& stage, const MicrobatchTensors& batch) {
  std::vector<double> losses;
  for (int64_t t = 0; t < batch.targets.size(0); ++t) {
    MicrobatchTensors one = batch;
    one.targets = batch.targets.clone().fill_(-1);
    one.targets[t].copy_(batch.targets[t]);
    at::Tensor sums = NoSums();
    stage.Evaluate(one, {}, sums);
    losses.push_back(sums[0].item<double>());
  }
  return losses;
}

MicrobatchTensors WithTokenChanged(const MicrobatchTensors& batch, int64_t at) {
  MicrobatchTensors changed = batch;
  changed.tokens = batch.tokens.clone();
  changed.tokens.mutable_data_ptr<int64_t>()[at] = (changed.tokens[at].item<int64_t>() + 1) % 61;
  return changed;
}

class Causality : public testing::TestWithParam<std::pair<const AttentionBackend& (*)(), at::ScalarType>> {
 protected:
  std::unique_ptr<Stage> MakeTiny(const DecoderSpec& spec) {
    BufferOptions options = OneRankOptions();
    options.compute = GetParam().second;
    return MakeStage(spec, options, {}, GetParam().first());
  }
};

TEST_P(Causality, ATokenReachesNoLossBeforeIt) {
  const DecoderSpec spec = TinyDecoderSpec();
  const auto stage = MakeTiny(spec);
  const MicrobatchTensors batch = TinyBatch(spec, {20});
  const std::vector<double> before = TokenLosses(*stage, batch);
  for (const int64_t changed : {1, 7, 19}) {
    const std::vector<double> after = TokenLosses(*stage, WithTokenChanged(batch, changed));
    for (int64_t t = 0; t < changed; ++t) EXPECT_EQ(after[t], before[t]) << "token " << changed << " reached " << t;
    for (int64_t t = changed; t < 20; ++t) EXPECT_NE(after[t], before[t]) << "token " << changed << ", loss " << t;
  }
}

TEST_P(Causality, SegmentsDoNotReachEachOther) {
  const DecoderSpec spec = TinyDecoderSpec();
  const auto stage = MakeTiny(spec);
  const MicrobatchTensors batch = TinyBatch(spec, {6, 9, 5});
  const std::vector<double> before = TokenLosses(*stage, batch);
  const std::vector<double> after = TokenLosses(*stage, WithTokenChanged(batch, 6));  // The second segment's first.
  for (int64_t t = 0; t < 20; ++t) {
    if (t >= 6 && t < 15) {
      EXPECT_NE(after[t], before[t]) << t;
    } else {
      EXPECT_EQ(after[t], before[t]) << t;
    }
  }
}

TEST_P(Causality, ASegmentIsItsSequenceAlone) {
  const DecoderSpec spec = TinyDecoderSpec();
  const auto stage = MakeTiny(spec);
  const MicrobatchTensors batch = TinyBatch(spec, {6, 9});
  MicrobatchTensors alone;
  alone.tokens = batch.tokens.narrow(0, 6, 9).contiguous();
  alone.targets = batch.targets.narrow(0, 6, 9).contiguous();
  alone.positions = batch.positions.narrow(0, 6, 9).contiguous();
  alone.cu_seqlens = TensorOf<int32_t>({0, 9});
  alone.max_seqlen = 9;
  const std::vector<double> packed = TokenLosses(*stage, batch), single = TokenLosses(*stage, alone);
  const double tolerance = GetParam().second == at::kBFloat16 ? 1e-2 : 1e-5;
  for (int64_t t = 0; t < 9; ++t) EXPECT_NEAR(packed[6 + t], single[t], tolerance * std::abs(single[t]));
}

TEST_P(Causality, AWindowEnds) {
  const DecoderSpec spec = TinyDecoderSpec(/*layers=*/1, /*window=*/4);
  const auto stage = MakeTiny(spec);
  const MicrobatchTensors batch = TinyBatch(spec, {20});
  const std::vector<double> before = TokenLosses(*stage, batch);
  const std::vector<double> after = TokenLosses(*stage, WithTokenChanged(batch, 5));
  for (int64_t t = 0; t < 20; ++t) {
    if (t >= 5 && t < 9) {
      EXPECT_NE(after[t], before[t]) << t;
    } else {
      EXPECT_EQ(after[t], before[t]) << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Causality,
                         testing::Values(std::pair(&CpuAttention, at::kFloat), std::pair(&MathAttention, at::kFloat),
                                         std::pair(&CpuAttention, at::kBFloat16)),
                         [](const auto& info) {
                           return absl::StrCat(info.param.first().name, "_", DtypeName(info.param.second));
                         });

// ---- Parameters ----

TEST(DecoderParameters, HaveLlamasNamesAndShapes) {
  for (const bool tied : {false, true}) {
    DecoderSpec spec = TinyDecoderSpec();
    spec.tied_embeddings = tied;
    const DecoderUnits decoder = BuildDecoder(spec, OneRankOptions(), CpuAttention());
    std::map<std::string, std::vector<int64_t>> shapes;
    int64_t numel = 0;
    for (const auto& buffer : decoder.buffers) {
      numel += buffer->num_parameters();
      for (const ParameterSpec& parameter : buffer->specs()) {
        EXPECT_TRUE(shapes.emplace(parameter.name, parameter.shape).second) << parameter.name << " twice";
        EXPECT_EQ(parameter.decay, parameter.shape.size() == 2) << parameter.name;
      }
    }
    EXPECT_EQ(numel, NumParameters(spec));
    EXPECT_EQ(shapes.size(), tied ? 20u : 21u);
    EXPECT_EQ(shapes.count("lm_head.weight"), tied ? 0u : 1u);
    EXPECT_EQ(shapes["model.embed_tokens.weight"], (std::vector<int64_t>{61, 32}));
    EXPECT_EQ(shapes["model.layers.1.self_attn.q_proj.weight"], (std::vector<int64_t>{32, 32}));
    EXPECT_EQ(shapes["model.layers.1.self_attn.k_proj.weight"], (std::vector<int64_t>{16, 32}));
    EXPECT_EQ(shapes["model.layers.0.self_attn.o_proj.weight"], (std::vector<int64_t>{32, 32}));
    EXPECT_EQ(shapes["model.layers.0.mlp.down_proj.weight"], (std::vector<int64_t>{32, 44}));
    EXPECT_EQ(shapes["model.layers.0.post_attention_layernorm.weight"], (std::vector<int64_t>{32}));
    EXPECT_EQ(shapes["model.norm.weight"], (std::vector<int64_t>{32}));
  }
}

TEST(DecoderParameters, ScaledInitializationTouchesWhatWritesToTheResidualStream) {
  DecoderSpec spec = TinyDecoderSpec();
  spec.scaled_residual_init = true;
  const DecoderUnits decoder = BuildDecoder(spec, OneRankOptions(), CpuAttention());
  for (const auto& buffer : decoder.buffers) {
    for (const ParameterSpec& p : buffer->specs()) {
      if (p.shape.size() == 1) continue;
      const bool writes = p.name.find("o_proj") != std::string::npos || p.name.find("down_proj") != std::string::npos;
      EXPECT_DOUBLE_EQ(p.standard_deviation, writes ? 0.2 / 2 : 0.2) << p.name;
    }
  }
}

// Llama 3.1 8B and Llama 2 7B, as their model cards count them.
TEST(DecoderSpecTest, CountsParametersOfKnownModels) {
  EXPECT_EQ(NumParameters(LlamaSpec({32, 4096, 32, 32, 11008, 32000})), 6'738'415'616);
  EXPECT_EQ(NumParameters(LlamaSpec({32, 4096, 32, 8, 14336, 128256})), 8'030'261'248);
}

TEST(DecoderSpecTest, FlopsAreSixPerWeightPlusAttention) {
  DecoderSpec spec = LlamaSpec({3, 64, 4, 2, 100, 1000});
  // Per layer: q and o 64 x 64, k and v 64 x 32, three 64 x 100; the head 1000 x 64; the embedding does not multiply.
  const double weights = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 100) + 64'000;
  // Scores and values, forward once and backward twice, two operations each: 12 per head element and visible key.
  EXPECT_DOUBLE_EQ(spec.TrainingFlopsPerToken(512), 6 * weights + 12.0 * 3 * 64 * 256);
  spec = LlamaSpec({.layers = 3, .hidden = 64, .heads = 4, .kv_heads = 2, .width = 100, .vocab = 1000, .window = 100});
  EXPECT_DOUBLE_EQ(spec.TrainingFlopsPerToken(512), 6 * weights + 12.0 * 3 * 64 * 100);
  EXPECT_DOUBLE_EQ(spec.TrainingFlopsPerToken(128), 6 * weights + 12.0 * 3 * 64 * 64);
  EXPECT_DOUBLE_EQ(spec.TrainingFlopsPerToken(128, 0.25), 6 * (weights - 48'000) + 12.0 * 3 * 64 * 64);
  spec.adapter = std::make_shared<AdapterSpec>();
  EXPECT_DOUBLE_EQ(spec.TrainingFlopsPerToken(128), 4 * weights + 12.0 * 3 * 64 * 64);
}

// ---- Rotary positions ----

TEST(RopeTableTest, PowersOfTheta) {
  const RopeTable table =
      MakeRopeTable({.theta = 500000, .dims = 64, .max_positions = 100, .scaling = {}}, at::kDouble, at::kCPU);
  ASSERT_EQ(table.cosine.sizes(), at::IntArrayRef({100, 32}));
  for (const int64_t position : {0, 1, 2, 99}) {
    for (int64_t i = 0; i < 32; ++i) {
      const double angle = static_cast<double>(position) * std::pow(500000.0, -2.0 * static_cast<double>(i) / 64);
      EXPECT_NEAR(table.cosine[position][i].item<double>(), std::cos(angle), 2e-5) << position << " " << i;
      EXPECT_NEAR(table.sine[position][i].item<double>(), std::sin(angle), 2e-5) << position << " " << i;
    }
  }
}

// Llama 3.1's rule, in wavelengths: short ones stay, long ones grow by `factor`, and between them the inverse
// wavelength is interpolated linearly in original / wavelength.
TEST(RopeTableTest, Llama3Scaling) {
  Rotation rotation = {.theta = 500000, .dims = 128, .max_positions = 1001, .scaling = {}};
  RotaryScaling& scaling = rotation.scaling.emplace();
  scaling.kind = RotaryScaling::kLlama3;
  scaling.factor = 8;
  const RopeTable table = MakeRopeTable(rotation, at::kDouble, at::kCPU);
  int kept = 0, between = 0, stretched = 0;
  for (int64_t i = 0; i < 64; ++i) {
    const double frequency = std::pow(500000.0, -static_cast<double>(i) / 64);
    const double turns = 8192 * frequency / (2 * M_PI);  // within the original context
    double expected = frequency;
    if (turns > 4) {
      ++kept;
    } else if (turns < 1) {
      ++stretched;
      expected = frequency / 8;
    } else {
      ++between;
      const double share = (turns - 1) / 3;
      expected = frequency * (share + (1 - share) / 8);
    }
    // The angle at position 1000 tells the frequency apart to 1e-6 wherever it stays below a turn.
    for (const int64_t position : {1, 1000}) {
      const double angle = static_cast<double>(position) * expected;
      EXPECT_NEAR(table.sine[position][i].item<double>(), std::sin(angle), 4e-7 * angle + 1e-9) << i;
      EXPECT_NEAR(table.cosine[position][i].item<double>(), std::cos(angle), 4e-7 * angle + 1e-9) << i;
    }
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(between, 3);
  EXPECT_GT(stretched, 20);
}

TEST(RopeTableTest, IsRoundedOnce) {
  const Rotation rotation = {.dims = 8, .max_positions = 40, .scaling = {}};
  const RopeTable wide = MakeRopeTable(rotation, at::kDouble, at::kCPU),
                  narrow = MakeRopeTable(rotation, at::kFloat, at::kCPU);
  EXPECT_TRUE(narrow.cosine.equal(wide.cosine.to(at::kFloat)));
  EXPECT_TRUE(narrow.sine.equal(wide.sine.to(at::kFloat)));
}

// ---- Families ----

ModelConfig TinyConfig() {
  ModelConfig config;
  config.set_num_hidden_layers(2);
  config.set_hidden_size(64);
  config.set_num_attention_heads(4);
  config.set_intermediate_size(100);
  config.set_vocab_size(211);
  config.set_max_position_embeddings(128);
  return config;
}

std::vector<std::string> ProblemsOf(const ModelConfig& config) {
  std::vector<std::string> problems;
  LlamaFamily().specify(config, &problems);
  return problems;
}

TEST(LlamaFamilyTest, FillsInWhatIsLeftOpen) {
  std::vector<std::string> problems;
  const DecoderSpec spec = LlamaFamily().specify(TinyConfig(), &problems);
  EXPECT_TRUE(problems.empty());
  ASSERT_EQ(spec.attentions().size(), 1u);
  EXPECT_EQ(spec.attentions()[0].kv_heads, 4);
  EXPECT_EQ(spec.attentions()[0].head_dim, 16);
  const Rotation rotation = DraftDecoder(TinyConfig(), &problems).rotation;
  EXPECT_EQ(rotation.theta, 10000);
  EXPECT_EQ(rotation.dims, 16);
  EXPECT_FALSE(rotation.scaling.has_value());
}

TEST(LlamaFamilyTest, SaysWhatDoesNotFit) {
  const auto expect = [](const std::function<void(ModelConfig*)>& change, const std::string& problem) {
    ModelConfig config = TinyConfig();
    change(&config);
    const std::vector<std::string> problems = ProblemsOf(config);
    ASSERT_EQ(problems.size(), 1u) << problem;
    EXPECT_NE(problems[0].find(problem), std::string::npos) << problems[0];
  };
  expect([](ModelConfig* c) { c->clear_hidden_size(); }, "model.hidden_size: not set");
  expect([](ModelConfig* c) { c->set_num_hidden_layers(0); }, "model.num_hidden_layers: is 0");
  expect([](ModelConfig* c) { c->set_hidden_size(66); }, "num_attention_heads: 4 does not divide hidden_size 66");
  expect([](ModelConfig* c) { c->set_num_key_value_heads(3); }, "num_key_value_heads: 3 does not divide");
  expect([](ModelConfig* c) { c->set_head_dim(15); }, "model.head_dim: 15 is odd");
  expect([](ModelConfig* c) { c->set_sliding_window(-1); }, "model.sliding_window: is -1");
  expect([](ModelConfig* c) { c->mutable_rope_scaling(); }, "rope_type: not set");
  expect([](ModelConfig* c) { c->set_rope_theta(0); }, "model.rope_theta: is 0; give a positive number");
  expect([](ModelConfig* c) { c->set_rms_norm_eps(-1); }, "model.rms_norm_eps: is -1");
  expect([](ModelConfig* c) { c->set_initializer_range(std::nan("")); }, "model.initializer_range: is nan");
  const auto scaled = [](ModelConfig* c) {
    c->mutable_rope_scaling()->set_rope_type(RopeScaling::LLAMA3);
    return c->mutable_rope_scaling();
  };
  expect([&](ModelConfig* c) { scaled(c)->set_factor(0); }, "model.rope_scaling.factor: is 0");
  expect([&](ModelConfig* c) { scaled(c)->set_high_freq_factor(1); },
         "high_freq_factor: 1 must exceed low_freq_factor 1");
  EXPECT_GE(ProblemsOf(ModelConfig()).size(), 6u) << "all at once";
}

TEST(FindFamilyTest, UnknownNamesListTheKnown) {
  EXPECT_EQ(FindFamily(BuiltInFamilies(), "llama")->name, "llama");
  const absl::Status status = FindFamily(BuiltInFamilies(), "lama").status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig);
  EXPECT_NE(status.message().find("known: llama, qwen2"), std::string::npos) << status;
}

}  // namespace
}  // namespace trireme
