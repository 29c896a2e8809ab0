// Every CUDA operation against the CPU's on the same values, and against itself a second time.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/nf4.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace trireme {
namespace {

const at::Device kGpu(at::kCUDA, 0);

// Why there is no GPU to test on; empty when there is one.
std::string MissingGpu() {
  const absl::StatusOr<int> count = CudaDeviceCount();
  if (!count.ok()) return std::string(count.status().message());
  return *count > 0 ? "" : "no GPU on this machine, or a build without CUDA";
}

class CudaKernels : public testing::TestWithParam<at::ScalarType> {
 protected:
  static void SetUpTestSuite() {
    SetCpuThreads(2);
    if (MissingGpu().empty()) {
      ASSERT_TRUE(UseCudaDevice(0).ok());
    }
  }
  void SetUp() override {
    if (const std::string reason = MissingGpu(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // Normally distributed, rounded to `dtype`, on the CPU.
  at::Tensor Random(at::IntArrayRef sizes, at::ScalarType dtype, double spread = 1) {
    at::Tensor values = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
    std::normal_distribution<float> normal(0, static_cast<float>(spread));
    float* data = values.data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i) data[i] = normal(generator_);
    return values.to(dtype);
  }
  at::Tensor RandomIds(int64_t n, int64_t limit) {
    at::Tensor ids = at::empty({n}, at::TensorOptions().dtype(at::kLong));
    for (int64_t i = 0; i < n; ++i)
      ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(generator_() % static_cast<uint64_t>(limit));
    return ids;
  }
  at::Tensor Ids(const std::vector<int32_t>& values) {
    at::Tensor ids = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kInt));
    std::copy(values.begin(), values.end(), ids.data_ptr<int32_t>());
    return ids;
  }

  std::mt19937_64 generator_{17};
};

at::Tensor OnGpu(const at::Tensor& x) { return x.defined() ? x.to(kGpu) : x; }

// Largest difference relative to the largest magnitude.
double Error(const at::Tensor& gpu, const at::Tensor& cpu) {
  const at::Tensor a = gpu.cpu().to(at::kDouble), b = cpu.to(at::kDouble);
  const double largest = b.abs().max().item<double>();
  const double difference = (a - b).abs().max().item<double>();
  return difference / std::max(largest, 1e-30);
}

// float32 sums in another order; bfloat16 results may land on the neighbouring value.
double Tolerance(at::ScalarType dtype) { return dtype == at::kFloat ? 1e-5 : 8e-3; }

// rows, width: vectors and single elements, weight sums in and beyond shared memory, one part and several.
constexpr std::pair<int64_t, int64_t> kRowShapes[] = {{3, 64},     {5, 100},   {9, 1001},
                                                      {3000, 256}, {17, 4096}, {6, 16384}};

TEST_P(CudaKernels, RmsNorm) {
  for (const auto& [rows, width] : kRowShapes) {
    const at::Tensor x = Random({rows, width}, GetParam()), delta = Random({rows, width}, GetParam()),
                     weight = Random({width}, GetParam());
    for (const at::Tensor& d : {at::Tensor(), delta}) {
      const RmsNormResult cpu = RmsNorm(x, d, weight, 1e-5), gpu = RmsNorm(OnGpu(x), OnGpu(d), OnGpu(weight), 1e-5);
      EXPECT_TRUE(at::equal(gpu.h.cpu(), cpu.h)) << rows << " x " << width;
      EXPECT_LE(Error(gpu.y, cpu.y), Tolerance(GetParam())) << rows << " x " << width;
      EXPECT_LE(Error(gpu.rstd, cpu.rstd), 1e-5);
      EXPECT_TRUE(at::equal(RmsNormAgain(gpu.h, gpu.rstd, OnGpu(weight)), gpu.y));
    }
  }
}

TEST_P(CudaKernels, RmsNormBackward) {
  for (const auto& [rows, width] : kRowShapes) {
    const at::Tensor h = Random({rows, width}, GetParam()), weight = Random({width}, GetParam());
    const at::Tensor dy = Random({rows, width}, GetParam()), residual = Random({rows, width}, GetParam());
    const at::Tensor rstd = RmsNorm(h, at::Tensor(), weight, 1e-5).rstd, start = Random({width}, at::kFloat);
    for (const at::Tensor& d_h : {at::Tensor(), residual}) {
      at::Tensor cpu_weight = start.clone(), gpu_weight = OnGpu(start), again = OnGpu(start);
      const at::Tensor cpu = RmsNormBackward(h, rstd, weight, dy, d_h, &cpu_weight);
      const at::Tensor gpu = RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), &gpu_weight);
      EXPECT_LE(Error(gpu, cpu), Tolerance(GetParam())) << rows << " x " << width;
      EXPECT_LE(Error(gpu_weight, cpu_weight), 1e-5) << rows << " x " << width;
      EXPECT_TRUE(at::equal(RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), &again), gpu));
      EXPECT_TRUE(at::equal(again, gpu_weight));
      EXPECT_TRUE(
          at::equal(RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), nullptr), gpu));
    }
  }
}

TEST_P(CudaKernels, SwiGlu) {
  for (const int64_t width : {64, 100, 333, 5632}) {
    const at::Tensor gate_up = Random({13, 2 * width}, GetParam(), 3), d_out = Random({13, width}, GetParam());
    EXPECT_LE(Error(GatedForward(OnGpu(gate_up)), GatedForward(gate_up)), Tolerance(GetParam())) << width;
    const at::Tensor apart = GatedBackward(OnGpu(gate_up), OnGpu(d_out));
    EXPECT_TRUE(at::equal(GatedBackward(OnGpu(gate_up), OnGpu(d_out), Activation::kSilu, /*in_place=*/true), apart));
    EXPECT_LE(Error(apart, GatedBackward(gate_up, d_out)), Tolerance(GetParam())) << width;
  }
}

TEST_P(CudaKernels, RopeTouchesOnlyItsHeads) {
  for (const int64_t head_dim : {6, 64, 128}) {
    const int64_t rows = 11, heads = 5, extra = 2, positions = 40;
    const RopeTable table = {Random({positions, head_dim / 2}, at::kFloat),
                             Random({positions, head_dim / 2}, at::kFloat)};
    const RopeTable gpu_table = {OnGpu(table.cosine), OnGpu(table.sine)};
    const at::Tensor where = RandomIds(rows, positions);
    for (const bool inverse : {false, true}) {
      at::Tensor cpu = Random({rows, (heads + extra) * head_dim}, GetParam());
      at::Tensor gpu = OnGpu(cpu);
      const at::Tensor untouched = cpu.narrow(1, heads * head_dim, extra * head_dim).clone();
      ApplyRope(cpu, heads, head_dim, where, table, inverse);
      ApplyRope(gpu, heads, head_dim, OnGpu(where), gpu_table, inverse);
      EXPECT_LE(Error(gpu, cpu), Tolerance(GetParam())) << head_dim;
      EXPECT_TRUE(at::equal(gpu.narrow(1, heads * head_dim, extra * head_dim).cpu(), untouched));
    }
  }
}

TEST_P(CudaKernels, EmbeddingAddsInTokenOrder) {
  for (const int64_t width : {64, 99, 4096}) {
    const int64_t rows = 700, vocab = 37;  // Every token stands many times.
    const at::Tensor tokens = RandomIds(rows, vocab), weight = Random({vocab, width}, GetParam()),
                     dy = Random({rows, width}, GetParam());
    EXPECT_TRUE(at::equal(EmbeddingForward(OnGpu(tokens), OnGpu(weight)).cpu(), EmbeddingForward(tokens, weight)));
    at::Tensor cpu = Random({vocab, width}, at::kFloat);
    at::Tensor gpu = OnGpu(cpu);
    AddEmbeddingGradient(tokens, dy, cpu);
    AddEmbeddingGradient(OnGpu(tokens), OnGpu(dy), gpu);
    EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << width;
  }
}

TEST_P(CudaKernels, LossHead) {
  for (const int64_t vocab : {1024, 1003}) {
    const int64_t tokens = 150, hidden = 64;
    const at::Tensor x = Random({tokens, hidden}, GetParam()), weight = Random({vocab, hidden}, GetParam(), 0.2);
    at::Tensor targets = RandomIds(tokens, vocab);
    for (int64_t i = 0; i < tokens; i += 7) targets.data_ptr<int64_t>()[i] = -100;
    const LossHeadOptions options = {.scale = 1.0 / 128, .z_loss = 1e-3, .chunk_tokens = 64, .with_gradient = true};
    at::Tensor cpu_weight = at::zeros({vocab, hidden}, at::kFloat), gpu_weight = OnGpu(cpu_weight),
               again_weight = OnGpu(cpu_weight);
    const LossHeadResult cpu = LossHead(x, weight, targets, options, &cpu_weight);
    const LossHeadResult gpu = LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, &gpu_weight);
    const double tolerance =
        GetParam() == at::kFloat ? 1e-5 : 2e-2;  // The GPU rounds the logits' gradient to bfloat16.
    EXPECT_LE(Error(gpu.sums, cpu.sums), 1e-6) << vocab;
    EXPECT_LE(Error(gpu.dx, cpu.dx), tolerance) << vocab;
    EXPECT_LE(Error(gpu_weight, cpu_weight), tolerance) << vocab;
    const LossHeadResult again = LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, &again_weight);
    EXPECT_TRUE(at::equal(again.sums, gpu.sums) && at::equal(again.dx, gpu.dx) && at::equal(again_weight, gpu_weight));
    LossHeadOptions evaluation = options;
    evaluation.with_gradient = false;
    EXPECT_TRUE(at::equal(LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), evaluation, nullptr).sums, gpu.sums));
  }
}

TEST_P(CudaKernels, LossHeadWithAdapter) {
  const int64_t tokens = 150, hidden = 64, vocab = 1003, rank = 4;
  const at::Tensor x = Random({tokens, hidden}, GetParam()), weight = Random({vocab, hidden}, GetParam(), 0.2);
  const at::Tensor targets = RandomIds(tokens, vocab);
  const LossHeadOptions options = {.scale = 1.0 / 128, .chunk_tokens = 64, .with_gradient = true};
  LossHeadAdapter cpu_added, gpu_added;
  cpu_added.thin = Random({tokens, rank}, GetParam());
  cpu_added.b = Random({vocab, rank}, GetParam(), 0.2);
  gpu_added.thin = OnGpu(cpu_added.thin);
  gpu_added.b = OnGpu(cpu_added.b);
  at::Tensor cpu_b = at::zeros({vocab, rank}, at::kFloat), gpu_b = OnGpu(cpu_b);
  cpu_added.d_b = &cpu_b;
  gpu_added.d_b = &gpu_b;
  const LossHeadResult cpu = LossHead(x, weight, targets, options, nullptr, &cpu_added);
  const LossHeadResult gpu = LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, nullptr, &gpu_added);
  const double tolerance = GetParam() == at::kFloat ? 1e-5 : 2e-2;
  EXPECT_LE(Error(gpu.sums, cpu.sums), 1e-6);
  EXPECT_LE(Error(gpu.dx, cpu.dx), tolerance);
  EXPECT_LE(Error(gpu_added.d_thin, cpu_added.d_thin), tolerance);
  EXPECT_LE(Error(gpu_b, cpu_b), tolerance);
}

TEST_P(CudaKernels, AddIntoAndMatrixProducts) {
  for (const int64_t n : {8, 1003, 70000}) {
    const at::Tensor b = Random({n}, GetParam());
    for (const at::ScalarType wide : {GetParam(), at::kFloat}) {
      at::Tensor cpu = Random({n}, wide), gpu = OnGpu(cpu);
      AddInto(cpu, b);
      at::Tensor gpu_b = OnGpu(b);
      AddInto(gpu, gpu_b);
      EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << n;
    }
  }
  const at::Tensor x = Random({96, 64}, GetParam()), w = Random({80, 64}, GetParam()),
                   dy = Random({96, 80}, GetParam());
  at::Tensor cpu = Random({80, 64}, at::kFloat), gpu = OnGpu(cpu);
  AddOuterProduct(dy, x, cpu);
  AddOuterProduct(OnGpu(dy), OnGpu(x), gpu);
  EXPECT_LE(Error(gpu, cpu), 1e-5);  // Added in float32 whatever the inputs.
  EXPECT_LE(Error(MatmulTransposed(OnGpu(x), OnGpu(w), OnGpu(dy)), MatmulTransposed(x, w, dy)), Tolerance(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaKernels, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return info.param == at::kFloat ? "float32" : "bfloat16"; });

class CudaOptimizers : public CudaKernels {};
INSTANTIATE_TEST_SUITE_P(Float, CudaOptimizers, testing::Values(at::kFloat), [](const auto&) { return "float32"; });

constexpr AdamWStep kStep = {.gradient_scale = 0.5f,
                             .beta1 = 0.9f,
                             .beta2 = 0.95f,
                             .one_minus_beta1 = 0.1f,
                             .one_minus_beta2 = 0.05f,
                             .step_size = 1e-2f,
                             .inverse_root_correction = 2.0f,
                             .eps = 1e-8f};

TEST_P(CudaOptimizers, AdamWAndSgd) {
  for (const int64_t n : {4096, 10007}) {
    const at::Tensor p = Random({n}, at::kFloat), g = Random({n}, at::kFloat), m = Random({n}, at::kFloat),
                     v = Random({n}, at::kFloat).square();
    at::Tensor p1 = p.clone(), m1 = m.clone(), v1 = v.clone(), copy1 = at::empty({n}, at::kBFloat16);
    at::Tensor p2 = OnGpu(p), m2 = OnGpu(m), v2 = OnGpu(v), copy2 = OnGpu(copy1);
    AdamWUpdate(kStep, 0.999f, p1, g, m1, v1, copy1);
    AdamWUpdate(kStep, 0.999f, p2, OnGpu(g), m2, v2, copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_LE(Error(v2, v1), 1e-6);
    EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
    SgdUpdate(0.5f, 0.1f, 0.9f, 0.99f, p1, g, m1, copy1);
    SgdUpdate(0.5f, 0.1f, 0.9f, 0.99f, p2, OnGpu(g), m2, copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
  }
}

// Without gradient and moments an update is one product, so the result shows the random bits: they are the CPU's,
// wherever the shard begins.
TEST_P(CudaOptimizers, StochasticRoundingDrawsTheSameBits) {
  const int64_t n = 10003;
  const RandomKey key = MakeRandomKey(1, RandomPurpose::kStochasticRounding, 2, 3);
  const at::Tensor p = Random({n}, at::kBFloat16), zero = at::zeros({n}, at::kFloat);
  for (const int64_t first : {int64_t{0}, int64_t{256}, int64_t{(int64_t{1} << 36) + 8}, int64_t{3}}) {
    at::Tensor cpu = p.clone(), gpu = OnGpu(p), cpu_m = zero.clone(), cpu_v = zero.clone(), gpu_m = OnGpu(zero),
               gpu_v = OnGpu(zero);
    AdamWUpdateBf16(kStep, 0.9987f, cpu, zero, cpu_m, cpu_v, key, first);
    AdamWUpdateBf16(kStep, 0.9987f, gpu, OnGpu(zero), gpu_m, gpu_v, key, first);
    EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << first;
    EXPECT_FALSE(at::equal(cpu, p));
  }
}

TEST_P(CudaOptimizers, AdamWBf16) {
  const int64_t n = 10003;
  const RandomKey key = {5, 6};
  const at::Tensor p = Random({n}, at::kBFloat16), g = Random({n}, at::kFloat), m = Random({n}, at::kFloat),
                   v = Random({n}, at::kFloat).square();
  at::Tensor p1 = p.clone(), m1 = m.clone(), v1 = v.clone(), p2 = OnGpu(p), m2 = OnGpu(m), v2 = OnGpu(v), p3 = OnGpu(p),
             m3 = OnGpu(m), v3 = OnGpu(v);
  AdamWUpdateBf16(kStep, 0.999f, p1, g, m1, v1, key, 512);
  AdamWUpdateBf16(kStep, 0.999f, p2, OnGpu(g), m2, v2, key, 512);
  AdamWUpdateBf16(kStep, 0.999f, p3, OnGpu(g), m3, v3, key, 512);
  EXPECT_TRUE(at::equal(p3, p2));
  EXPECT_LE(Error(m2, m1), 1e-6);
  EXPECT_LE(Error(v2, v1), 1e-6);
  // A last bit of the float32 update may tip a rounding, rarely.
  EXPECT_LE(p2.cpu().ne(p1).sum().item<int64_t>(), n / 500);
  EXPECT_LE(Error(p2, p1), 8e-3);
}

TEST_P(CudaOptimizers, SquaredNorm) {
  for (const int64_t n : {2, 1003, 300001}) {
    const at::Tensor x = Random({n}, at::kFloat);
    const double cpu = SquaredNorm(x), gpu = SquaredNorm(OnGpu(x));
    EXPECT_NEAR(gpu, cpu, 1e-12 * cpu) << n;
    EXPECT_EQ(SquaredNorm(OnGpu(x)), gpu);
    EXPECT_NEAR(SquaredNorm(OnGpu(x).narrow(0, 1, n - 1)), SquaredNorm(x.narrow(0, 1, n - 1)),
                1e-12 * cpu);  // Not aligned to 16 bytes.
  }
}

class CudaAttention : public CudaKernels {};
// A rank's columns [128, 256) of rows of 320, with nested scales; and rows of 8 bits from within a row on.
TEST_P(CudaKernels, DequantizedWeights) {
  const at::ScalarType dtype = GetParam();
  const int64_t blocks = 997, numbers = 3000;
  const at::Tensor packed = RandomIds(blocks * 32, 256).to(at::kByte), codes = RandomIds(blocks, 256).to(at::kByte);
  const at::Tensor map = Random({256}, at::kFloat), absmax = Random({(numbers + 255) / 256}, at::kFloat);
  const at::Tensor rows = RandomIds(5000, 256).to(at::kChar), scales = Random({40}, at::kFloat);
  const auto dequantize = [&](at::Device device) {
    std::vector<at::Tensor> kept;
    const auto pointer = [&](const at::Tensor& tensor) {
      kept.push_back(tensor.to(device));
      return kept.back().const_data_ptr();
    };
    Nf4Blocks b;
    b.packed = static_cast<const uint8_t*>(pointer(packed));
    b.codes = static_cast<const uint8_t*>(pointer(codes));
    b.nested_map = static_cast<const float*>(pointer(map));
    b.nested_absmax = static_cast<const float*>(pointer(absmax));
    b.nested_offset = 0.125f;
    b.blocks = blocks;
    b.first_block = 2;
    b.skip = 3;
    b.row_blocks = 2;
    b.row_stride = 5;
    b.type = dtype == at::kBFloat16 ? ValueType::kBfloat16 : ValueType::kFloat16;
    at::Tensor nf4 = at::empty({blocks * kNf4Block}, at::TensorOptions().dtype(dtype).device(device));
    DequantizeNf4(b, nf4);
    Int8Rows r;
    r.codes = static_cast<const int8_t*>(pointer(rows));
    r.absmax = static_cast<const float*>(pointer(scales));
    r.n = 5000;
    r.first = 77;
    r.columns = 130;
    at::Tensor int8 = at::empty({5000}, nf4.options());
    DequantizeInt8Rows(r, int8);
    return std::pair(nf4.cpu(), int8.cpu());
  };
  const auto [nf4, int8] = dequantize(kGpu);
  const auto [expected_nf4, expected_int8] = dequantize(at::kCPU);
  EXPECT_TRUE(at::equal(nf4, expected_nf4));
  EXPECT_TRUE(at::equal(int8, expected_int8));
}

INSTANTIATE_TEST_SUITE_P(Bf16, CudaAttention, testing::Values(at::kBFloat16), [](const auto&) { return "bfloat16"; });

TEST_P(CudaAttention, FlashEqualsMath) {
  const int64_t tokens = 333, heads = 8, kv_heads = 2;
  for (const int64_t head_dim : {64, 128}) {
    for (const int64_t window : {0, 20}) {
      const at::Tensor packed = Random({tokens, heads + 2 * kv_heads, head_dim}, GetParam()),
                       d_out = Random({tokens, heads, head_dim}, GetParam());
      const auto arguments = [&](const at::Tensor& qkv) {
        AttentionArguments a;
        a.q = qkv.narrow(1, 0, heads);
        a.k = qkv.narrow(1, heads, kv_heads);
        a.v = qkv.narrow(1, heads + kv_heads, kv_heads);
        // One segment of one token, and padding: segments without any.
        a.cu_seqlens_q = a.cu_seqlens_k = Ids({0, 130, 131, 333, 333, 333}).to(qkv.device());
        a.max_q = a.max_k = 202;
        a.window = window;
        a.scale = 1 / std::sqrt(static_cast<double>(head_dim));
        return a;
      };
      const auto gradients = [&](at::Tensor& d_qkv) {
        return AttentionGradients{d_qkv.narrow(1, 0, heads), d_qkv.narrow(1, heads, kv_heads),
                                  d_qkv.narrow(1, heads + kv_heads, kv_heads)};
      };
      const AttentionArguments cpu_arguments = arguments(packed), gpu_arguments = arguments(OnGpu(packed));
      ASSERT_TRUE(FlashAttention().supports(gpu_arguments).ok()) << FlashAttention().supports(gpu_arguments);
      const AttentionOutput cpu = MathAttention().forward(cpu_arguments), gpu = FlashAttention().forward(gpu_arguments);
      EXPECT_LE(Error(gpu.out, cpu.out), 1e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu.lse, cpu.lse), 1e-4) << head_dim << ", window " << window;
      at::Tensor cpu_gradient = at::empty_like(packed), gpu_gradient = OnGpu(cpu_gradient);
      AttentionGradients cpu_parts = gradients(cpu_gradient), gpu_parts = gradients(gpu_gradient);
      MathAttention().backward(cpu_arguments, cpu, d_out, cpu_parts);
      FlashAttention().backward(gpu_arguments, gpu, OnGpu(d_out), gpu_parts);
      EXPECT_LE(Error(gpu_parts.dq, cpu_parts.dq), 2e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu_parts.dk, cpu_parts.dk), 2e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu_parts.dv, cpu_parts.dv), 2e-2) << head_dim << ", window " << window;
    }
  }
}

TEST_P(CudaAttention, RefusalsSayWhy) {
  AttentionArguments a;
  a.q = at::zeros({4, 2, 64}, at::TensorOptions().dtype(at::kFloat).device(kGpu));
  a.k = a.v = a.q;
  EXPECT_NE(FlashAttention().supports(a).message().find("bfloat16"), absl::string_view::npos);
  a.q = a.k = a.v = a.q.to(at::kBFloat16);
  EXPECT_TRUE(FlashAttention().supports(a).ok());
  a.softcap = 30;
  EXPECT_NE(FlashAttention().supports(a).message().find("soft cap"), absl::string_view::npos);
  a.softcap = 0;
  a.q = a.k = a.v = at::zeros({4, 2, 68}, a.q.options());
  EXPECT_NE(FlashAttention().supports(a).message().find("68"), absl::string_view::npos);
}

}  // namespace
}  // namespace trireme
