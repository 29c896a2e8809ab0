// Attention over sequences cut between all ranks of the job against the same attention on the whole stream.
#include "parallel/layers/context_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "parallel/comm/mpi_group.h"
#include "tests/kernels/test_tensors.h"
#include "tests/parallel/multi_rank.h"

namespace trireme {
namespace {

constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadDim = 16;

struct Case {
  const char* name;
  int64_t sequences, sequence_length;
  double documents_per_token;
  int64_t window;
};

// Lengths that 16 ranks divide; with 2 and 4 chunks are of 12 to 168 tokens: windows below one, across several, beyond
// the sequence; documents that cross chunks, and only documents of one token; more than a block of the kernels (64
// queries, 512 keys).
const Case kCases[] = {
    {"whole sequences", 3, 96, 0, 0},
    {"documents", 3, 96, 0.08, 0},
    {"documents of one token", 2, 96, 1, 0},
    {"window within a chunk", 2, 96, 0, 4},
    {"window of one", 2, 96, 0.1, 1},
    {"window across chunks", 3, 96, 0.04, 40},
    {"window beyond the sequence", 2, 96, 0.08, 100},
    {"long", 1, 672, 0.005, 0},
    {"long with a window", 1, 672, 0.005, 130},
};

std::string Describe(const Case& c, ContextMethod method) {
  return absl::StrCat(c.name, method == ContextMethod::kRing ? ", ring" : ", gather");
}

// The same on every rank.
struct Stream {
  Stream(const Case& c, at::ScalarType dtype) : sequence_length(c.sequence_length), random(17) {
    const int64_t tokens = c.sequences * c.sequence_length;
    cu_seqlens = {0};
    for (int64_t end = 1; end <= tokens; ++end) {
      if (end % sequence_length == 0 || random.Below(1000) < c.documents_per_token * 1000)
        cu_seqlens.push_back(static_cast<int32_t>(end));
    }
    cu_seqlens.resize(cu_seqlens.size() + 3, cu_seqlens.back());  // As the loader pads.
    qkv = random.Normal({tokens, kHeads + 2 * kKvHeads, kHeadDim}, dtype);
    d_out = random.Normal({tokens, kHeads, kHeadDim}, dtype);
    window = c.window;
  }
  int64_t sequence_length, window;
  TestTensors random;
  std::vector<int32_t> cu_seqlens;
  at::Tensor qkv, d_out;
};

AttentionArguments Views(const at::Tensor& qkv) {
  AttentionArguments a;
  a.q = qkv.narrow(1, 0, kHeads);
  a.k = qkv.narrow(1, kHeads, kKvHeads);
  a.v = qkv.narrow(1, kHeads + kKvHeads, kKvHeads);
  a.scale = 1 / std::sqrt(static_cast<double>(kHeadDim));
  return a;
}

struct Results {
  AttentionOutput output;
  at::Tensor d_qkv;
};

// Tokens first.
constexpr const char* kTensorNames[] = {"out", "lse", "dq", "dk", "dv"};
std::vector<at::Tensor> TensorsOf(const Results& results) {
  const AttentionArguments d = Views(results.d_qkv);
  return {results.output.out, results.output.lse.t(), d.q, d.k, d.v};
}

AttentionGradients GradientViews(const at::Tensor& d_qkv) {
  const AttentionArguments views = Views(d_qkv);
  return {views.q, views.k, views.v};
}

// What is not written stays NaN.
at::Tensor Unwritten(const at::Tensor& like) { return at::full(like.sizes(), std::nan(""), like.options()); }

Results Whole(const Stream& stream, at::ScalarType dtype) {
  AttentionArguments a = Views(stream.qkv.to(dtype));
  a.cu_seqlens_q = a.cu_seqlens_k = TensorOf(stream.cu_seqlens);
  a.max_q = a.max_k = stream.sequence_length;
  a.window = stream.window;
  Results results = {CpuAttention().forward(a), Unwritten(stream.qkv.to(dtype))};
  AttentionGradients gradients = GradientViews(results.d_qkv);
  CpuAttention().backward(a, results.output, stream.d_out.to(dtype), gradients);
  return results;
}

class ContextAttentionTest : public testing::Test {
 protected:
  ContextAttentionTest() : group_(MakeWorldGroup(&log_)) {}

  at::Tensor OwnTokens(const Stream& stream) const {
    return TensorOf(
        LocalTokens(stream.qkv.size(0), stream.sequence_length, TestProcess().size(), TestProcess().rank()));
  }
  ContextAttention Context(const Stream& stream, ContextMethod method) const {
    UploadBlock upload(at::kCPU);
    const ContextPlan plan = PlanContext(method, stream.cu_seqlens, stream.sequence_length, stream.window,
                                         TestProcess().size(), TestProcess().rank());
    ContextAttention context(group_.get(), plan, upload);
    upload.Start();
    return context;
  }
  AttentionOutput Forward(const Stream& stream, ContextMethod method, const AttentionBackend& backend) {
    const ContextAttention context = Context(stream, method);
    return ContextAttentionForward(backend, &context, Views(stream.qkv.index_select(0, OwnTokens(stream))));
  }
  Results ForwardAndBackward(const Stream& stream, ContextMethod method, const AttentionBackend& backend) {
    const at::Tensor own = OwnTokens(stream), qkv = stream.qkv.index_select(0, own);
    const ContextAttention context = Context(stream, method);
    Results results = {ContextAttentionForward(backend, &context, Views(qkv)), Unwritten(qkv)};
    AttentionGradients gradients = GradientViews(results.d_qkv);
    ContextAttentionBackward(backend, &context, Views(qkv), results.output, stream.d_out.index_select(0, own),
                             gradients);
    return results;
  }

  OperationCount Count(const std::string& operation) const {
    const auto counts = log_.counts();
    const auto found = counts.find({group_->name(), operation});
    return found == counts.end() ? OperationCount() : found->second;
  }

  // check(stream, what this rank got), in every case by both methods.
  template <typename Check>
  void ForEveryCase(at::ScalarType dtype, Check&& check) {
    for (const Case& c : kCases) {
      const Stream stream(c, dtype);
      for (const ContextMethod method : {ContextMethod::kGather, ContextMethod::kRing}) {
        SCOPED_TRACE(Describe(c, method));
        const Results got = ForwardAndBackward(stream, method, CpuAttention());
        EXPECT_EQ(got.output.out.scalar_type(), dtype);
        EXPECT_TRUE(got.output.out.is_contiguous() && got.output.lse.is_contiguous());
        check(stream, got);
      }
    }
  }

  // Relative to the largest value, or to one where a gradient is smaller than what came in: a query with one key has
  // none to pass on.
  void ExpectLikeWhole(at::ScalarType dtype, double tolerance) {
    ForEveryCase(dtype, [&](const Stream& stream, const Results& got) {
      const std::vector<at::Tensor> all = TensorsOf(Whole(stream, dtype)), own = TensorsOf(got);
      for (size_t i = 0; i < own.size(); ++i) {
        const at::Tensor want = all[i].index_select(0, OwnTokens(stream));
        const double largest = std::max(want.abs().max().item<double>(), 1.0);
        EXPECT_LT((own[i] - want).abs().max().item<double>() / largest, tolerance) << kTensorNames[i];
      }
    });
  }

  OperationLog log_;
  std::shared_ptr<ProcessGroup> group_;
};

// Nothing but the order of sums differs.
TEST_F(ContextAttentionTest, Float64LikeTheWholeStream) { ExpectLikeWhole(at::kDouble, 1e-13); }

// Exponentials and sums of up to 672 terms, each rounded to 6e-8 and in another order.
TEST_F(ContextAttentionTest, Float32LikeTheWholeStream) { ExpectLikeWhole(at::kFloat, 2e-6); }

// Splitting at most doubles the error that bfloat16 has anyway, against float64 on the same values: a merge adds parts
// that are rounded as the whole is. Where that is none (a document of one token) float32's round-off remains.
TEST_F(ContextAttentionTest, BFloat16AtMostTwiceTheErrorOfTheWholeStream) {
  ForEveryCase(at::kBFloat16, [&](const Stream& stream, const Results& got) {
    const std::vector<at::Tensor> exact = TensorsOf(Whole(stream, at::kDouble)), own = TensorsOf(got);
    const std::vector<at::Tensor> whole = TensorsOf(Whole(stream, at::kBFloat16));
    for (size_t i = 0; i < own.size(); ++i) {
      const auto error = [&](const at::Tensor& rows) {
        const at::Tensor difference = rows.to(at::kDouble) - exact[i].index_select(0, OwnTokens(stream));
        return std::sqrt(difference.square().mean().item<double>());
      };
      EXPECT_LT(error(own[i]), 2 * error(whole[i].index_select(0, OwnTokens(stream))) + 1e-6) << kTensorNames[i];
    }
  });
}

TEST_F(ContextAttentionTest, MathBackendLikeCpuBackend) {
  const Stream stream(kCases[5], at::kDouble);
  for (const ContextMethod method : {ContextMethod::kGather, ContextMethod::kRing}) {
    const Results math = ForwardAndBackward(stream, method, MathAttention());
    const Results cpu = ForwardAndBackward(stream, method, CpuAttention());
    EXPECT_LT(RelativeError(math.output.out, cpu.output.out), 1e-12);
    EXPECT_LT(RelativeError(math.d_qkv, cpu.d_qkv), 1e-12);
  }
}

TEST_F(ContextAttentionTest, SameBitsEveryTime) {
  const Stream stream(kCases[5], at::kFloat);
  for (const ContextMethod method : {ContextMethod::kGather, ContextMethod::kRing}) {
    const Results first = ForwardAndBackward(stream, method, CpuAttention());
    const Results second = ForwardAndBackward(stream, method, CpuAttention());
    EXPECT_TRUE(first.output.out.equal(second.output.out));
    EXPECT_TRUE(first.output.lse.equal(second.output.lse));
    EXPECT_TRUE(first.d_qkv.equal(second.d_qkv));
  }
}

TEST_F(ContextAttentionTest, WithoutContextItIsTheBackend) {
  const Stream stream(kCases[1], at::kFloat);
  AttentionArguments a = Views(stream.qkv);
  a.cu_seqlens_q = a.cu_seqlens_k = TensorOf(stream.cu_seqlens);
  a.max_q = a.max_k = stream.sequence_length;
  const Results whole = Whole(stream, at::kFloat);
  const AttentionOutput output = ContextAttentionForward(CpuAttention(), nullptr, a);
  EXPECT_TRUE(output.out.equal(whole.output.out));
  const at::Tensor d_qkv = Unwritten(stream.qkv);
  AttentionGradients gradients = GradientViews(d_qkv);
  ContextAttentionBackward(CpuAttention(), nullptr, a, output, stream.d_out, gradients);
  EXPECT_TRUE(d_qkv.equal(whole.d_qkv));
  EXPECT_TRUE(log_.counts().empty());
}

TEST_F(ContextAttentionTest, GatherMovesKeysOnceEachWayAndGradientsOnce) {
  const int ranks = TestProcess().size();
  REQUIRE_RANKS(ranks > 1, "a group of one moves nothing");
  const Stream stream(kCases[0], at::kBFloat16);
  const int64_t numel = stream.qkv.size(0) / ranks * 2 * kKvHeads * kHeadDim;  // keys and values of one rank
  Forward(stream, ContextMethod::kGather, CpuAttention());
  EXPECT_EQ(log_.counts().size(), 1u);
  EXPECT_EQ(Count("all_gather").calls, 1);
  EXPECT_EQ(Count("all_gather").bytes, (ranks - 1) * numel * 2);

  log_.ResetCounts();
  ForwardAndBackward(stream, ContextMethod::kGather, CpuAttention());
  EXPECT_EQ(log_.counts().size(), 2u);
  EXPECT_EQ(Count("all_gather").calls, 2);
  EXPECT_EQ(Count("all_gather").bytes, 2 * (ranks - 1) * numel * 2);
  EXPECT_EQ(Count("reduce_scatter").calls, 1);
  EXPECT_EQ(Count("reduce_scatter").bytes, (ranks - 1) * numel * 4);
}

TEST_F(ContextAttentionTest, RingSendsOneBlockLessThanRanksAndGathersNothing) {
  const int ranks = TestProcess().size();
  REQUIRE_RANKS(ranks > 1, "a group of one moves nothing");
  const Stream stream(kCases[0], at::kBFloat16);
  const int64_t numel = stream.qkv.size(0) / ranks * 2 * kKvHeads * kHeadDim;
  Forward(stream, ContextMethod::kRing, CpuAttention());
  EXPECT_EQ(log_.counts().size(), 1u);
  EXPECT_EQ(Count("exchange").calls, ranks - 1);
  EXPECT_EQ(Count("exchange").bytes, (ranks - 1) * numel * 2);

  // Backward the same again, and their gradients once to every rank and home.
  log_.ResetCounts();
  ForwardAndBackward(stream, ContextMethod::kRing, CpuAttention());
  EXPECT_EQ(log_.counts().size(), 1u);
  EXPECT_EQ(Count("exchange").calls, 2 * (ranks - 1) + ranks);
  EXPECT_EQ(Count("exchange").bytes, 2 * (ranks - 1) * numel * 2 + ranks * numel * 4);
}

// A backend that tells when it is called.
std::function<void()> on_forward;
const AttentionBackend kWatched = {"watched", CpuAttention().supports,
                                   [](const AttentionArguments& a) {
                                     on_forward();
                                     return CpuAttention().forward(a);
                                   },
                                   CpuAttention().backward};

TEST_F(ContextAttentionTest, TheNextBlockIsUnderWayWhileOneIsComputed) {
  const int ranks = TestProcess().size();
  const Stream stream(kCases[0], at::kFloat);
  int computed = 0;
  on_forward = [&] {
    ++computed;
    EXPECT_EQ(Count("exchange").calls, std::min(computed, ranks - 1)) << "block " << computed;
    const bool under_way = log_.Describe(/*finished=*/0).find("exchange") != std::string::npos;
    EXPECT_EQ(under_way, computed < ranks) << "block " << computed << ": " << log_.Describe(0);
  };
  Forward(stream, ContextMethod::kRing, kWatched);
  EXPECT_EQ(computed, ranks);
}

// CPU attention, refusing what one of a ring's calls may have.
AttentionBackend Refusing(absl::Status (*supports)(const AttentionArguments&)) {
  return {"refusing", supports, CpuAttention().forward, CpuAttention().backward};
}

TEST(SupportsContext, ARingWithAWindowNeedsADiagonal) {
  const AttentionBackend plain = Refusing([](const AttentionArguments& a) {
    return a.diagonal.defined() ? absl::UnimplementedError("has no diagonal") : absl::OkStatus();
  });
  AttentionArguments example = Views(at::empty({1, kHeads + 2 * kKvHeads, kHeadDim}, at::kFloat));
  EXPECT_TRUE(SupportsContext(plain, ContextMethod::kRing, example).ok());
  example.window = 8;
  EXPECT_TRUE(SupportsContext(plain, ContextMethod::kGather, example).ok());
  EXPECT_FALSE(SupportsContext(plain, ContextMethod::kRing, example).ok());
  EXPECT_TRUE(SupportsContext(CpuAttention(), ContextMethod::kRing, example).ok());
}

TEST(SupportsContext, ARingNeedsCallsWithoutACausalMask) {
  const AttentionBackend causal = Refusing(
      [](const AttentionArguments& a) { return a.causal ? absl::OkStatus() : absl::UnimplementedError("is causal"); });
  const AttentionArguments example = Views(at::empty({1, kHeads + 2 * kKvHeads, kHeadDim}, at::kFloat));
  EXPECT_TRUE(SupportsContext(causal, ContextMethod::kGather, example).ok());
  EXPECT_FALSE(SupportsContext(causal, ContextMethod::kRing, example).ok());
}

}  // namespace
}  // namespace trireme
