// Every CUDA operation against the CPU's on the same values, and against itself a second time. Long because there are
// many.
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/experts/chosen_rows.h"
#include "kernels/matrix/nf4.h"
#include "tests/kernels/decisions.h"
#include "tests/kernels/gpu_test.h"

namespace trireme {
namespace {

class CudaKernels : public GpuTest {};

// float32 sums in another order; bfloat16 results may land on the neighbouring value.
double GpuTolerance(at::ScalarType dtype) { return dtype == at::kFloat ? 1e-5 : 8e-3; }

// rows, width: vectors and single elements, weight sums in and beyond shared memory, one part and several.
constexpr std::pair<int64_t, int64_t> kRowShapes[] = {{3, 64},     {5, 100},   {9, 1001},
                                                      {3000, 256}, {17, 4096}, {6, 16384}};

TEST_P(CudaKernels, RmsNorm) {
  for (const auto& [rows, width] : kRowShapes) {
    const at::Tensor x = random_.Normal({rows, width}, GetParam()), delta = random_.Normal({rows, width}, GetParam()),
                     weight = random_.Normal({width}, GetParam());
    for (const at::Tensor& d : {at::Tensor(), delta}) {
      const RmsNormResult cpu = RmsNorm(x, d, weight, 1e-5),
                          gpu = cuda::RmsNorm(OnGpu(x), OnGpu(d), OnGpu(weight), 1e-5, 0);
      EXPECT_TRUE(at::equal(gpu.h.cpu(), cpu.h)) << rows << " x " << width;
      EXPECT_LE(Error(gpu.y, cpu.y), GpuTolerance(GetParam())) << rows << " x " << width;
      EXPECT_LE(Error(gpu.rstd, cpu.rstd), 1e-5);
      EXPECT_TRUE(at::equal(cuda::RmsNormAgain(gpu.h, gpu.rstd, OnGpu(weight), 0), gpu.y));
    }
  }
}

TEST_P(CudaKernels, RmsNormBackward) {
  for (const auto& [rows, width] : kRowShapes) {
    const at::Tensor h = random_.Normal({rows, width}, GetParam()), weight = random_.Normal({width}, GetParam());
    const at::Tensor dy = random_.Normal({rows, width}, GetParam()),
                     residual = random_.Normal({rows, width}, GetParam());
    const at::Tensor rstd = RmsNorm(h, at::Tensor(), weight, 1e-5).rstd, start = random_.Normal({width}, at::kFloat);
    for (const at::Tensor& d_h : {at::Tensor(), residual}) {
      at::Tensor cpu_weight = start.clone(), gpu_weight = OnGpu(start), again = OnGpu(start);
      const at::Tensor cpu = RmsNormBackward(h, rstd, weight, dy, d_h, &cpu_weight);
      const at::Tensor gpu =
          cuda::RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), &gpu_weight, 0);
      EXPECT_LE(Error(gpu, cpu), GpuTolerance(GetParam())) << rows << " x " << width;
      EXPECT_LE(Error(gpu_weight, cpu_weight), 1e-5) << rows << " x " << width;
      EXPECT_TRUE(at::equal(
          cuda::RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), &again, 0), gpu));
      EXPECT_TRUE(at::equal(again, gpu_weight));
      EXPECT_TRUE(at::equal(
          cuda::RmsNormBackward(OnGpu(h), OnGpu(rstd), OnGpu(weight), OnGpu(dy), OnGpu(d_h), nullptr, 0), gpu));
    }
  }
}

TEST_P(CudaKernels, GatedActivations) {
  for (const int64_t width : {64, 100, 333, 5632}) {
    const at::Tensor gate_up = random_.Normal({13, 2 * width}, GetParam(), 3),
                     d_out = random_.Normal({13, width}, GetParam());
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      EXPECT_LE(Error(cuda::GatedForward(OnGpu(gate_up), activation), GatedForward(gate_up, activation)),
                GpuTolerance(GetParam()))
          << width;
      const at::Tensor apart = cuda::GatedBackward(OnGpu(gate_up), OnGpu(d_out), activation, /*in_place=*/false);
      EXPECT_TRUE(at::equal(cuda::GatedBackward(OnGpu(gate_up), OnGpu(d_out), activation, /*in_place=*/true), apart));
      EXPECT_LE(Error(apart, GatedBackward(gate_up, d_out, activation)), GpuTolerance(GetParam())) << width;
    }
  }
}

TEST_P(CudaKernels, GatesOfExperts) {
  for (const int64_t width : {1, 64, 100, 333, 5632}) {
    const at::Tensor gate_up = random_.Normal({13, 2 * width}, GetParam(), 3),
                     d_out = random_.Normal({13, width}, GetParam()), weights = random_.Normal({13, 1}, at::kFloat);
    for (const ExpertGate& gate : {ExpertGate{Activation::kSilu, {}}, ExpertGate{Activation::kGeluTanh, {}},
                                   ExpertGate{Activation::kSilu, ClampedGate{1.1, 2}}}) {
      EXPECT_LE(Error(cuda::ExpertGateForward(OnGpu(gate_up), OnGpu(weights), gate),
                      ExpertGateForward(gate_up, weights, gate)),
                GpuTolerance(GetParam()))
          << width;
      const ExpertGateGradients gpu = cuda::ExpertGateBackward(OnGpu(gate_up), OnGpu(weights), OnGpu(d_out), gate),
                                again = cuda::ExpertGateBackward(OnGpu(gate_up), OnGpu(weights), OnGpu(d_out), gate),
                                cpu = ExpertGateBackward(gate_up, weights, d_out, gate);
      EXPECT_LE(Error(gpu.gate_up, cpu.gate_up), GpuTolerance(GetParam())) << width;
      EXPECT_LE(Error(gpu.weights, cpu.weights), 1e-5) << width;
      EXPECT_LE(Error(gpu.out, cpu.out), GpuTolerance(GetParam())) << width;
      EXPECT_TRUE(at::equal(gpu.weights, again.weights));
      EXPECT_TRUE(at::equal(gpu.gate_up, again.gate_up));
    }
  }
}

TEST_P(CudaKernels, SumsOfChoices) {
  for (const auto& [tokens, per_token, width] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {37, 8, 333}}) {
    const at::Tensor x = random_.Normal({tokens * per_token, width}, GetParam());
    const at::Tensor place = random_.Ids(tokens * per_token, tokens * per_token);
    EXPECT_TRUE(
        at::equal(cuda::SumOfChoices(OnGpu(x), OnGpu(place), per_token).cpu(), SumOfChoices(x, place, per_token)))
        << tokens;
  }
}

TEST_P(CudaKernels, RopeTouchesOnlyItsHeads) {
  struct Case {
    int64_t head_dim, pairs;
    bool interleaved;
  };
  for (const auto& [head_dim, pairs, interleaved] : {Case{6, 3, false},
                                                     {64, 32, false},
                                                     {128, 64, false},
                                                     {64, 16, false},
                                                     {80, 5, false},
                                                     {64, 32, true},
                                                     {80, 10, true}}) {
    const int64_t rows = 11, heads = 5, extra = 2, positions = 40;
    const RopeTable table = {random_.Normal({positions, pairs}, at::kFloat),
                             random_.Normal({positions, pairs}, at::kFloat), interleaved};
    const RopeTable gpu_table = {OnGpu(table.cosine), OnGpu(table.sine), interleaved};
    const at::Tensor where = random_.Ids(rows, positions);
    for (const bool inverse : {false, true}) {
      at::Tensor cpu = random_.Normal({rows, (heads + extra) * head_dim}, GetParam());
      at::Tensor gpu = OnGpu(cpu);
      const at::Tensor untouched = cpu.narrow(1, heads * head_dim, extra * head_dim).clone();
      ApplyRope(cpu, heads, head_dim, where, table, inverse);
      cuda::ApplyRope(gpu, heads, head_dim, OnGpu(where), gpu_table, inverse);
      EXPECT_LE(Error(gpu, cpu), GpuTolerance(GetParam())) << head_dim;
      EXPECT_TRUE(at::equal(gpu.narrow(1, heads * head_dim, extra * head_dim).cpu(), untouched));
    }
  }
}

TEST_P(CudaKernels, DropoutDropsTheSame) {
  for (const auto& [width, first_column] : {std::pair<int64_t, int64_t>{64, 0}, {99, 3}, {2050, 130}}) {
    const at::Tensor x = random_.Normal({7, width}, GetParam()), tokens = random_.Ids(7, int64_t{1} << 40);
    const DropoutOptions options = {.rate = 0.3, .key = {11, 12}, .first_column = first_column};
    const at::Tensor cpu = Dropout(x, tokens, options), gpu = cuda::Dropout(OnGpu(x), OnGpu(tokens), options);
    EXPECT_TRUE(at::equal(gpu.cpu().ne(0), cpu.ne(0))) << width;
    EXPECT_LE(Error(gpu, cpu), GpuTolerance(GetParam())) << width;
  }
}

TEST_P(CudaKernels, EmbeddingAddsInTokenOrder) {
  for (const int64_t width : {64, 99, 4096}) {
    const int64_t rows = 700, vocab = 37;  // Every token stands many times.
    const at::Tensor tokens = random_.Ids(rows, vocab), weight = random_.Normal({vocab, width}, GetParam()),
                     dy = random_.Normal({rows, width}, GetParam());
    EXPECT_TRUE(
        at::equal(cuda::EmbeddingForward(OnGpu(tokens), OnGpu(weight)).cpu(), EmbeddingForward(tokens, weight)));
    at::Tensor cpu = random_.Normal({vocab, width}, at::kFloat);
    at::Tensor gpu = OnGpu(cpu);
    at::Tensor part = gpu.narrow(0, 10, 20).clone();  // The other rows are other ranks'.
    AddEmbeddingGradient(tokens, dy, cpu);
    cuda::AddEmbeddingGradient(OnGpu(tokens), OnGpu(dy), gpu);
    EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << width;
    cuda::AddEmbeddingGradient(OnGpu(tokens.sub(10)), OnGpu(dy), part);
    EXPECT_TRUE(at::equal(part, gpu.narrow(0, 10, 20))) << width;
  }
}

// libtorch has no product of bfloat16 with a float32 result on the CPU.
#define SKIP_IF_EMULATED_BF16() \
  if (kEmulated && GetParam() == at::kBFloat16) GTEST_SKIP() << "needs a product that only GPUs have"

TEST_P(CudaKernels, LossHead) {
  SKIP_IF_EMULATED_BF16();
  for (const int64_t vocab : {1024, 1003}) {
    const int64_t tokens = 150, hidden = 64;
    const at::Tensor x = random_.Normal({tokens, hidden}, GetParam()),
                     weight = random_.Normal({vocab, hidden}, GetParam(), 0.2);
    at::Tensor targets = random_.Ids(tokens, vocab);
    for (int64_t i = 0; i < tokens; i += 7) targets.data_ptr<int64_t>()[i] = -100;
    const LossHeadOptions options = {.scale = 1.0 / 128, .z_loss = 1e-3, .chunk_tokens = 64, .with_gradient = true};
    at::Tensor cpu_weight = at::zeros({vocab, hidden}, at::kFloat), gpu_weight = OnGpu(cpu_weight),
               again_weight = OnGpu(cpu_weight);
    const LossHeadResult cpu = LossHead(x, weight, targets, options, &cpu_weight);
    const LossHeadResult gpu = cuda::LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, &gpu_weight, nullptr);
    const double tolerance =
        GetParam() == at::kFloat ? 1e-5 : 2e-2;  // The GPU rounds the logits' gradient to bfloat16.
    EXPECT_LE(Error(gpu.sums, cpu.sums), 1e-6) << vocab;
    EXPECT_LE(Error(gpu.dx, cpu.dx), tolerance) << vocab;
    EXPECT_LE(Error(gpu_weight, cpu_weight), tolerance) << vocab;
    const LossHeadResult again =
        cuda::LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, &again_weight, nullptr);
    EXPECT_TRUE(at::equal(again.sums, gpu.sums) && at::equal(again.dx, gpu.dx) && at::equal(again_weight, gpu_weight));
    LossHeadOptions evaluation = options;
    evaluation.with_gradient = false;
    EXPECT_TRUE(at::equal(cuda::LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), evaluation, nullptr, nullptr).sums,
                          gpu.sums));
  }
}

// The vocabulary in two parts whose statistics are combined; logits under a soft cap.
TEST_P(CudaKernels, LossHeadInPartsAndCapped) {
  SKIP_IF_EMULATED_BF16();
  const int64_t tokens = 70, hidden = 64, vocab = 1003, cut = 500;
  const at::Tensor x = random_.Normal({tokens, hidden}, GetParam()),
                   weight = random_.Normal({vocab, hidden}, GetParam(), 0.2);
  at::Tensor targets = random_.Ids(tokens, vocab);
  targets.data_ptr<int64_t>()[3] = -100;
  for (const double softcap : {0.0, 2.0}) {
    const LossHeadOptions whole = {
        .scale = 1.0 / 64, .z_loss = 1e-3, .softcap = softcap, .chunk_tokens = 64, .with_gradient = true};
    at::Tensor cpu_weight = at::zeros({vocab, hidden}, at::kFloat);
    const LossHeadResult cpu = LossHead(x, weight, targets, whole, &cpu_weight);
    // Statistics first, chunk after chunk, as each part computes them; then both parts get those of the whole.
    std::vector<at::Tensor> seen[2];
    at::Tensor dx = at::zeros({tokens, hidden}, at::kFloat);
    std::vector<at::Tensor> parts_weight;
    at::Tensor sums;
    for (const bool combined : {false, true}) {
      for (const int part : {0, 1}) {
        const int64_t begin = part == 0 ? 0 : cut, rows = part == 0 ? cut : vocab - cut;
        size_t chunk = 0;
        LossHeadOptions options = whole;
        options.first_id = begin;
        options.vocab_size = vocab;
        options.combine = [&](at::Tensor& statistics) {
          if (!combined) return seen[part].push_back(statistics.clone());
          const at::Tensor both = at::stack({seen[0][chunk], seen[1][chunk]});
          statistics.select(0, 0).copy_(at::logsumexp(both.select(1, 0), {0}));
          statistics.select(0, 1).copy_(both.select(1, 1).sum(0));
          ++chunk;
        };
        at::Tensor d_weight = OnGpu(at::zeros({rows, hidden}, at::kFloat));
        const LossHeadResult result =
            cuda::LossHead(OnGpu(x), OnGpu(weight.narrow(0, begin, rows)), OnGpu(targets), options, &d_weight, nullptr);
        if (!combined) continue;
        dx.add_(result.dx.cpu().to(at::kFloat));
        parts_weight.push_back(d_weight.cpu());
        sums = result.sums;
      }
    }
    const double tolerance = GetParam() == at::kFloat ? 1e-5 : 2e-2;
    EXPECT_LE(Error(sums, cpu.sums), 1e-6) << softcap;
    EXPECT_LE(Error(dx, cpu.dx), tolerance) << softcap;
    EXPECT_LE(Error(at::cat(parts_weight, 0), cpu_weight), tolerance) << softcap;
  }
}

TEST_P(CudaKernels, LossHeadWithAdapter) {
  SKIP_IF_EMULATED_BF16();
  const int64_t tokens = 150, hidden = 64, vocab = 1003, rank = 4;
  const at::Tensor x = random_.Normal({tokens, hidden}, GetParam()),
                   weight = random_.Normal({vocab, hidden}, GetParam(), 0.2);
  const at::Tensor targets = random_.Ids(tokens, vocab);
  const LossHeadOptions options = {.scale = 1.0 / 128, .chunk_tokens = 64, .with_gradient = true};
  LossHeadAdapter cpu_added, gpu_added;
  cpu_added.thin = random_.Normal({tokens, rank}, GetParam());
  cpu_added.b = random_.Normal({vocab, rank}, GetParam(), 0.2);
  gpu_added.thin = OnGpu(cpu_added.thin);
  gpu_added.b = OnGpu(cpu_added.b);
  at::Tensor cpu_b = at::zeros({vocab, rank}, at::kFloat), gpu_b = OnGpu(cpu_b);
  cpu_added.d_b = &cpu_b;
  gpu_added.d_b = &gpu_b;
  const LossHeadResult cpu = LossHead(x, weight, targets, options, nullptr, &cpu_added);
  const LossHeadResult gpu = cuda::LossHead(OnGpu(x), OnGpu(weight), OnGpu(targets), options, nullptr, &gpu_added);
  const double tolerance = GetParam() == at::kFloat ? 1e-5 : 2e-2;
  EXPECT_LE(Error(gpu.sums, cpu.sums), 1e-6);
  EXPECT_LE(Error(gpu.dx, cpu.dx), tolerance);
  EXPECT_LE(Error(gpu_added.d_thin, cpu_added.d_thin), tolerance);
  EXPECT_LE(Error(gpu_b, cpu_b), tolerance);
}

TEST_P(CudaKernels, AddIntoAndMatrixProducts) {
  for (const int64_t n : {8, 1003, 70000}) {
    const at::Tensor b = random_.Normal({n}, GetParam());
    for (const at::ScalarType wide : {GetParam(), at::kFloat}) {
      at::Tensor cpu = random_.Normal({n}, wide), gpu = OnGpu(cpu);
      AddInto(cpu, b);
      at::Tensor gpu_b = OnGpu(b);
      cuda::AddInto(gpu, gpu_b);
      EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << n;
    }
  }
  const at::Tensor x = random_.Normal({96, 64}, GetParam()), w = random_.Normal({80, 64}, GetParam()),
                   dy = random_.Normal({96, 80}, GetParam());
  at::Tensor cpu = random_.Normal({80, 64}, at::kFloat), gpu = OnGpu(cpu);
  AddOuterProduct(dy, x, cpu);
  AddOuterProduct(OnGpu(dy), OnGpu(x), gpu);
  EXPECT_LE(Error(gpu, cpu), 1e-5);  // Added in float32 whatever the inputs.
  EXPECT_LE(Error(MatmulTransposed(OnGpu(x), OnGpu(w), OnGpu(dy)), MatmulTransposed(x, w, dy)),
            GpuTolerance(GetParam()));
}

// A rank's columns [128, 256) of rows of 320, with nested scales; and rows of 8 bits from within a row on.
TEST_P(CudaKernels, DequantizedWeights) {
  const at::ScalarType dtype = GetParam();
  const int64_t blocks = 997, numbers = 3000;
  const at::Tensor packed = random_.Ids(blocks * 32, 256).to(at::kByte), codes = random_.Ids(blocks, 256).to(at::kByte);
  const at::Tensor map = random_.Normal({256}, at::kFloat),
                   absmax = random_.Normal({(numbers + 255) / 256}, at::kFloat);
  const at::Tensor rows = random_.Ids(5000, 256).to(at::kChar), scales = random_.Normal({40}, at::kFloat);
  const at::Tensor exponents = random_.Ids(blocks, 255).to(at::kByte);
  const auto dequantize = [&](bool on_gpu) {
    const at::Device device = on_gpu ? kGpu : at::Device(at::kCPU);
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
    on_gpu ? cuda::DequantizeNf4(b, nf4) : DequantizeNf4(b, nf4);
    Int8Rows r;
    r.codes = static_cast<const int8_t*>(pointer(rows));
    r.absmax = static_cast<const float*>(pointer(scales));
    r.n = 5000;
    r.first = 77;
    r.columns = 130;
    at::Tensor int8 = at::empty({5000}, nf4.options());
    on_gpu ? cuda::DequantizeInt8Rows(r, int8) : DequantizeInt8Rows(r, int8);
    Mxfp4Blocks m;
    m.packed = static_cast<const uint8_t*>(pointer(packed));
    m.scales = static_cast<const uint8_t*>(pointer(exponents));
    m.blocks = blocks;
    at::Tensor mxfp4 = at::empty({blocks * kMxfp4Block}, nf4.options());
    on_gpu ? cuda::DequantizeMxfp4(m, mxfp4) : DequantizeMxfp4(m, mxfp4);
    return std::tuple(nf4.cpu(), int8.cpu(), mxfp4.cpu());
  };
  const auto [nf4, int8, mxfp4] = dequantize(/*on_gpu=*/true);
  const auto [expected_nf4, expected_int8, expected_mxfp4] = dequantize(/*on_gpu=*/false);
  EXPECT_TRUE(at::equal(mxfp4, expected_mxfp4));
  EXPECT_TRUE(at::equal(nf4, expected_nf4));
  EXPECT_TRUE(at::equal(int8, expected_int8));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaKernels, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return DtypeName(info.param); });

class CudaOptimizers : public CudaKernels {};
INSTANTIATE_TEST_SUITE_P(Float, CudaOptimizers, testing::Values(at::kFloat),
                         [](const auto& info) { return DtypeName(info.param); });

AdamWRule Rule(float keep) {
  return {.rate = 1e-2,
          .keep = keep,
          .beta1 = 0.9f,
          .beta2 = 0.95f,
          .one_minus_beta1 = 0.1f,
          .one_minus_beta2 = 0.05f,
          .eps = 1e-8f};
}

WholeIndex From(int64_t begin) { return {.begin = begin}; }

TEST_P(CudaOptimizers, AdamWAndSgd) {
  const at::Tensor decision = DecisionTo(0.5, 3), on_gpu = OnGpu(decision);
  for (const int64_t n : {4096, 10007}) {
    const at::Tensor p = random_.Normal({n}, at::kFloat), g = random_.Normal({n}, at::kFloat),
                     m = random_.Normal({n}, at::kFloat), v = random_.Normal({n}, at::kFloat).square();
    at::Tensor p1 = p.clone(), m1 = m.clone(), v1 = v.clone(), copy1 = at::empty({n}, at::kBFloat16);
    at::Tensor p2 = OnGpu(p), m2 = OnGpu(m), v2 = OnGpu(v), copy2 = OnGpu(copy1);
    AdamWUpdate(Rule(0.999f), decision, p1, g, m1, v1, copy1);
    cuda::AdamWUpdate(Rule(0.999f), on_gpu, p2, OnGpu(g), m2, v2, copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_LE(Error(v2, v1), 1e-6);
    EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
    SgdUpdate({0.1f, 0.9f, 0.99f}, decision, p1, g, m1, copy1);
    cuda::SgdUpdate({0.1f, 0.9f, 0.99f}, on_gpu, p2, OnGpu(g), m2, copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
  }
}

TEST_P(CudaOptimizers, LionAndMuonsSteps) {
  const LionRule lion = {.rate = 0.01F, .keep = 0.99F};
  const DirectionRule along = {.rate = 0.02F, .keep = 0.98F};
  const MuonMomentumRule momentum;
  for (const int64_t n : {1, 255, 10003}) {
    const at::Tensor p = random_.Normal({n}, at::kFloat), g = random_.Normal({n}, at::kFloat),
                     m = random_.Normal({n}, at::kFloat), decision = DecisionTo(0.5, 3), on_gpu = OnGpu(decision);
    at::Tensor p1 = p.clone(), m1 = m.clone(), copy1 = at::zeros({n}, at::kBFloat16), out1 = at::zeros({n}, at::kFloat);
    at::Tensor p2 = OnGpu(p), m2 = OnGpu(m), copy2 = OnGpu(copy1), out2 = OnGpu(out1);
    LionUpdate(lion, decision, p1, g, m1, copy1);
    cuda::LionUpdate(lion, on_gpu, p2, OnGpu(g), m2, copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
    MuonMomentum(momentum, decision, g, m1, out1);
    cuda::MuonMomentum(momentum, on_gpu, OnGpu(g), m2, out2);
    EXPECT_LE(Error(m2, m1), 1e-6);
    EXPECT_LE(Error(out2, out1), 1e-6);
    DirectionUpdate(along, decision, p1, out1, copy1);
    cuda::DirectionUpdate(along, on_gpu, p2, OnGpu(out1), copy2);
    EXPECT_LE(Error(p2, p1), 1e-6);
    // Without a step the rounding shows the random bits alone.
    const RandomKey key = {3, 4};
    at::Tensor rounded1 = p.to(at::kBFloat16), rounded2 = OnGpu(rounded1);
    DirectionUpdateBf16({.rate = 0, .keep = 0.9987F}, decision, rounded1, g, key, From(3));
    cuda::DirectionUpdateBf16({.rate = 0, .keep = 0.9987F}, on_gpu, rounded2, OnGpu(g), key, From(3));
    EXPECT_TRUE(at::equal(rounded2.cpu(), rounded1));
    LionUpdateBf16({.rate = 0, .keep = 0.9987F}, decision, rounded1, g, m1, key, From(3));
    cuda::LionUpdateBf16({.rate = 0, .keep = 0.9987F}, on_gpu, rounded2, OnGpu(g), m2, key, From(3));
    EXPECT_TRUE(at::equal(rounded2.cpu(), rounded1));
  }
}

TEST_P(CudaOptimizers, EightBitMoments) {
  const MomentTables tables = MakeMomentTables(at::kCPU);
  const MomentTables gpu_tables = {OnGpu(tables.first), OnGpu(tables.second), OnGpu(tables.first_codes),
                                   OnGpu(tables.second_codes)};
  const RandomKey key = {3, 4};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const int64_t n = 3 * kMomentBlock + 77, blocks = 4;
    const auto zeros = [](int64_t size, at::ScalarType of) { return at::zeros({size}, of); };
    EightBitMoments cpu = {zeros(n, at::kByte), zeros(n, at::kByte), zeros(blocks, at::kFloat),
                           zeros(blocks, at::kFloat)};
    EightBitMoments gpu = {OnGpu(cpu.first), OnGpu(cpu.second), OnGpu(cpu.first_absmax), OnGpu(cpu.second_absmax)};
    at::Tensor p1 = random_.Normal({n}, at::kFloat).to(type), p2 = OnGpu(p1);
    at::Tensor copy1 = type == at::kFloat ? zeros(n, at::kBFloat16) : at::Tensor();
    at::Tensor copy2 = copy1.defined() ? OnGpu(copy1) : copy1;
    for (int64_t step = 1; step <= 3; ++step) {
      at::Tensor g = random_.Normal({n}, at::kFloat);
      g.narrow(0, 0, kMomentBlock).zero_();
      const at::Tensor decision = DecisionTo(0.5, step);
      AdamW8Update(Rule(0.999f), decision, p1, g, cpu, tables, copy1, key, From(256));
      cuda::AdamW8Update(Rule(0.999f), OnGpu(decision), p2, OnGpu(g), gpu, gpu_tables, copy2, key, From(256));
    }
    EXPECT_TRUE(at::equal(gpu.first.cpu(), cpu.first));
    EXPECT_TRUE(at::equal(gpu.second.cpu(), cpu.second));
    EXPECT_LE(Error(gpu.first_absmax, cpu.first_absmax), 1e-6);
    EXPECT_LE(Error(gpu.second_absmax, cpu.second_absmax), 1e-6);
    EXPECT_LE(Error(p2, p1), type == at::kFloat ? 1e-6 : 8e-3);
    if (copy2.defined()) {
      EXPECT_TRUE(at::equal(copy2, p2.to(at::kBFloat16)));
    }
  }
}

// Without gradient and moments an update is one product, so the result shows the random bits: they are the CPU's,
// wherever the shard begins.
TEST_P(CudaOptimizers, StochasticRoundingDrawsTheSameBits) {
  const int64_t n = 10003;
  const RandomKey key = MakeRandomKey(1, RandomPurpose::kStochasticRounding, 2, 3);
  const at::Tensor p = random_.Normal({n}, at::kBFloat16), zero = at::zeros({n}, at::kFloat);
  for (const int64_t first : {int64_t{0}, int64_t{256}, int64_t{(int64_t{1} << 36) + 8}, int64_t{3}}) {
    at::Tensor cpu = p.clone(), gpu = OnGpu(p), cpu_m = zero.clone(), cpu_v = zero.clone(), gpu_m = OnGpu(zero),
               gpu_v = OnGpu(zero);
    AdamWUpdateBf16(Rule(0.9987f), DecisionTo(1), cpu, zero, cpu_m, cpu_v, key, From(first));
    cuda::AdamWUpdateBf16(Rule(0.9987f), OnGpu(DecisionTo(1)), gpu, OnGpu(zero), gpu_m, gpu_v, key, From(first));
    EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << first;
    EXPECT_FALSE(at::equal(cpu, p));
  }
}

// Likewise where a rank holds columns of a matrix: in one launch, however many rows there are.
TEST_P(CudaOptimizers, ColumnsOfAMatrixTakeOneLaunch) {
  const RandomKey key = {5, 6};
  struct Cut {
    int64_t rows, width, stride, first;
  };
  for (const auto& [rows, width, stride, first] :
       {Cut{3, 64, 128, 64}, Cut{200, 64, 128, 64}, Cut{77, 13, 40, 9}, Cut{77, 16, 40, 8}}) {
    const int64_t begin = width / 8 * 8, n = rows * width - begin;
    const WholeIndex index = {.origin = first, .begin = begin, .width = width, .stride = stride};
    const at::Tensor p = random_.Normal({n}, at::kBFloat16), zero = at::zeros({n}, at::kFloat);
    at::Tensor cpu = p.clone(), gpu = OnGpu(p), cpu_m = zero.clone(), cpu_v = zero.clone(), gpu_m = OnGpu(zero),
               gpu_v = OnGpu(zero);
    AdamWUpdateBf16(Rule(0.9987f), DecisionTo(1), cpu, zero, cpu_m, cpu_v, key, index);
    const at::Tensor decision = OnGpu(DecisionTo(1)), gradient = OnGpu(zero);
    const int64_t launches = Launches();
    cuda::AdamWUpdateBf16(Rule(0.9987f), decision, gpu, gradient, gpu_m, gpu_v, key, index);
    if (kEmulated) {
      EXPECT_EQ(Launches() - launches, 1) << rows;
    }
    EXPECT_TRUE(at::equal(gpu.cpu(), cpu)) << rows;
  }
}

TEST_P(CudaOptimizers, DecideAsTheCpuDoes) {
  at::Tensor parts = random_.Normal({4 * 3}, at::kDouble).square();
  const at::Tensor loss_ranks = TensorOf(std::vector<int64_t>{0, 1, 3}),
                   norm_ranks = TensorOf(std::vector<int64_t>{1, 2});
  const DecisionRule rule = {.max_norm = 0.5, .max_consecutive_skips = 2};
  for (const double square : {1.0, std::numeric_limits<double>::infinity()}) {
    parts.mutable_data_ptr<double>()[5] = square;
    at::Tensor cpu = DecisionTo(1, 8), gpu = OnGpu(cpu);
    DecideUpdate(rule, parts, loss_ranks, norm_ranks, cpu, cpu);
    cuda::DecideUpdate(rule, OnGpu(parts), OnGpu(loss_ranks), OnGpu(norm_ranks), gpu, gpu);
    EXPECT_TRUE(at::allclose(gpu.cpu(), cpu, 1e-14, 0)) << square;
    EXPECT_EQ(DecisionIn(cpu).apply, square == 1.0 ? 1 : 0);
  }
}

TEST_P(CudaOptimizers, SkippedUpdatesChangeNothing) {
  UpdateDecision skip;
  skip.apply = 0;
  const at::Tensor decision = OnGpu(TensorOf(skip)), p = random_.Normal({1003}, at::kFloat), g = OnGpu(p);
  at::Tensor weights = OnGpu(p), rounded = OnGpu(p.to(at::kBFloat16)), m = OnGpu(p * 0), v = OnGpu(m);
  cuda::AdamWUpdate(Rule(0.9f), decision, weights, g, m, v, at::Tensor());
  cuda::SgdUpdate({0.1f, 0.9f, 0.99f}, decision, weights, g, m, at::Tensor());
  cuda::AdamWUpdateBf16(Rule(0.9f), decision, rounded, g, m, v, {1, 2}, From(0));
  cuda::LionUpdate({.rate = 0.1F}, decision, weights, g, m, at::Tensor());
  cuda::LionUpdateBf16({.rate = 0.1F}, decision, rounded, g, m, {1, 2}, From(0));
  cuda::DirectionUpdate({.rate = 0.1F}, decision, weights, g, at::Tensor());
  cuda::MuonMomentum({}, decision, g, m, v);
  EXPECT_TRUE(at::equal(weights.cpu(), p));
  EXPECT_TRUE(at::equal(rounded.cpu(), p.to(at::kBFloat16)));
  EXPECT_EQ(m.abs().sum().item<float>() + v.abs().sum().item<float>(), 0);
}

TEST_P(CudaOptimizers, AdamWBf16) {
  const int64_t n = 10003;
  const RandomKey key = {5, 6};
  const at::Tensor p = random_.Normal({n}, at::kBFloat16), g = random_.Normal({n}, at::kFloat),
                   m = random_.Normal({n}, at::kFloat), v = random_.Normal({n}, at::kFloat).square();
  at::Tensor p1 = p.clone(), m1 = m.clone(), v1 = v.clone(), p2 = OnGpu(p), m2 = OnGpu(m), v2 = OnGpu(v), p3 = OnGpu(p),
             m3 = OnGpu(m), v3 = OnGpu(v);
  const at::Tensor decision = DecisionTo(0.5, 3), on_gpu = OnGpu(decision);
  AdamWUpdateBf16(Rule(0.999f), decision, p1, g, m1, v1, key, From(512));
  cuda::AdamWUpdateBf16(Rule(0.999f), on_gpu, p2, OnGpu(g), m2, v2, key, From(512));
  cuda::AdamWUpdateBf16(Rule(0.999f), on_gpu, p3, OnGpu(g), m3, v3, key, From(512));
  EXPECT_TRUE(at::equal(p3, p2));
  EXPECT_LE(Error(m2, m1), 1e-6);
  EXPECT_LE(Error(v2, v1), 1e-6);
  // A last bit of the float32 update may tip a rounding, rarely.
  EXPECT_LE(p2.cpu().ne(p1).sum().item<int64_t>(), n / 500);
  EXPECT_LE(Error(p2, p1), 8e-3);
}

// Of each, and of all.
std::vector<double> SquaresOnGpu(const std::vector<at::Tensor>& tensors) {
  const auto count = static_cast<int64_t>(tensors.size());
  const at::Tensor sums = OnGpu(at::zeros({count + 1}, at::kDouble));
  cuda::SquaredNorms(tensors, sums.narrow(0, 0, count), sums.narrow(0, count, 1));
  const at::Tensor host = sums.cpu();
  return std::vector<double>(host.const_data_ptr<double>(), host.const_data_ptr<double>() + count + 1);
}

TEST_P(CudaOptimizers, SquaredNorm) {
  for (const int64_t n : {2, 1003, 300001}) {
    const at::Tensor x = random_.Normal({n}, at::kFloat);
    const double cpu = SquaredNorm(x), gpu = SquaresOnGpu({OnGpu(x)})[0];
    EXPECT_NEAR(gpu, cpu, 1e-12 * cpu) << n;
    // The second one is not aligned to 16 bytes.
    const at::Tensor rest = x.narrow(0, 1, n - 1), whole = OnGpu(x);
    const std::vector<double> both = SquaresOnGpu({whole, whole.narrow(0, 1, n - 1)});
    EXPECT_EQ(both[0], gpu);
    EXPECT_NEAR(both[1], SquaredNorm(rest), 1e-12 * cpu);
    EXPECT_EQ(both[2], both[0] + both[1]);
  }
}

}  // namespace
}  // namespace trireme
