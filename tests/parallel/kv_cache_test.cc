#include "parallel/layers/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/test_tensors.h"

namespace trireme {
namespace {

constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadDim = 8;

AttentionArguments Arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) {
  AttentionArguments arguments;
  arguments.q = q;
  arguments.k = k;
  arguments.v = v;
  arguments.window = window;
  arguments.scale = 1 / std::sqrt(static_cast<double>(kHeadDim));
  const auto tokens = static_cast<int32_t>(q.size(0));
  arguments.cu_seqlens_q = arguments.cu_seqlens_k = TensorOf<int32_t>({0, tokens});
  arguments.max_q = arguments.max_k = tokens;
  return arguments;
}

TEST(KvCache, AttentionInPiecesIsAttentionAtOnce) {
  constexpr int64_t kTokens = 23;
  TestTensors random(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor q = random.Normal({kTokens, kHeads, kHeadDim}, dtype),
                     k = random.Normal({kTokens, kKvHeads, kHeadDim}, dtype),
                     v = random.Normal({kTokens, kKvHeads, kHeadDim}, dtype);
    for (const int64_t window : {0, 6}) {
      const at::Tensor expected = MathAttention().forward(Arguments(q, k, v, window)).out;
      for (const AttentionBackend& backend : {MathAttention(), CpuAttention()}) {
        KvCache cache({{2, 6, 0, 5, 1}}, /*page_tokens=*/5, at::kCPU);
        for (const auto& [begin, end] : {std::pair{0, 7}, {7, 8}, {8, 20}, {20, 23}}) {
          cache.Begin({end - begin}, /*padding=*/0);
          const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, end - begin); };
          const at::Tensor out = cache.layer("a").Attend(backend, Arguments(part(q), part(k), part(v), window)).out;
          EXPECT_LE(RelativeError(out, part(expected)), Tolerance(dtype)) << backend.name << ", from " << begin;
        }
      }
    }
  }
}

TEST(KvCache, LayersAreApartAndPaddingIsNotKept) {
  TestTensors random(2);
  KvCache cache({{0}}, /*page_tokens=*/8, at::kCPU);
  cache.Begin({2}, /*padding=*/2);
  EXPECT_TRUE(cache.cu_seqlens().equal(TensorOf<int32_t>({0, 2, 4})));
  for (const char* layer : {"a", "b"}) {
    const at::Tensor q = random.Normal({4, kHeads, kHeadDim}, at::kFloat),
                     k = random.Normal({4, kKvHeads, kHeadDim}, at::kFloat),
                     v = random.Normal({4, kKvHeads, kHeadDim}, at::kFloat);
    const at::Tensor out = cache.layer(layer).Attend(CpuAttention(), Arguments(q, k, v, 0)).out;
    const at::Tensor expected =
        CpuAttention().forward(Arguments(q.narrow(0, 0, 2), k.narrow(0, 0, 2), v.narrow(0, 0, 2), 0)).out;
    EXPECT_TRUE(out.narrow(0, 0, 2).equal(expected)) << layer;
    EXPECT_EQ(out.narrow(0, 2, 2).abs().max().item<float>(), 0) << "padding sees nothing";
  }
  EXPECT_EQ(cache.length(0), 2);
}

// Lengths around the borders of pages, and the first ones.
class KvCacheLimit : public testing::TestWithParam<int64_t> {};

TEST_P(KvCacheLimit, NoTokenFitsBeyondIt) {
  const int64_t most = GetParam();
  KvCache cache = KvCache::Contiguous(most, at::kCPU);
  EXPECT_EQ(cache.capacity(0), most);
  cache.Begin({most}, /*padding=*/0);
  EXPECT_EQ(cache.length(0), most);
  EXPECT_DEATH(cache.Begin({1}, /*padding=*/0), absl::StrCat("room for ", most, " tokens, not for ", most + 1));
}

INSTANTIATE_TEST_SUITE_P(OddSizes, KvCacheLimit, testing::Values(1, 7, 15, 16, 17, 31, 32, 33, 50));

TEST(KvCache, EverySequenceHasItsOwnLimit) {
  const KvCache cache({{0, 1}, {2}, {3, 4}}, /*page_tokens=*/8, at::kCPU, {13, 100, 16});
  EXPECT_EQ(cache.capacity(0), 13);
  EXPECT_EQ(cache.capacity(1), 8) << "its pages end first";
  EXPECT_EQ(cache.capacity(2), 16);
}

TEST(KvCacheDeathTest, RefusesWhatDoesNotFit) {
  EXPECT_DEATH(KvCache({{0, 1}, {1}}, 8, at::kCPU), "page 1 stands twice");
  KvCache cache({{0}}, 8, at::kCPU);
  EXPECT_DEATH(cache.Begin({9}, 0), "room for 8 tokens, not for 9");
  EXPECT_DEATH(KvCache({{0}, {1}}, 8, at::kCPU, {5}), "1 limits for 2 sequences");
}

}  // namespace
}  // namespace trireme
