#include "parallel/layers/context_split.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "launch/base/status.h"

namespace trireme {
namespace {

using Pairs = std::map<std::pair<int64_t, int64_t>, int>;  // (query, key), tokens of the stream: how often they meet

struct Stream {
  int64_t sequence_length;
  std::vector<int32_t> cu_seqlens;
  int64_t tokens() const { return cu_seqlens.back(); }
};

// Documents cut at random, many of one token, within sequences.
Stream RandomStream(int64_t sequences, int64_t sequence_length, double documents_per_token, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::bernoulli_distribution cut(documents_per_token);
  Stream stream = {sequence_length, {0}};
  for (int32_t end = 1; end <= sequences * sequence_length; ++end) {
    if (end % sequence_length == 0 || cut(generator)) stream.cu_seqlens.push_back(end);
  }
  return stream;
}

Pairs VisiblePairs(const Stream& stream, int64_t window) {
  Pairs pairs;
  for (size_t s = 0; s + 1 < stream.cu_seqlens.size(); ++s) {
    for (int64_t query = stream.cu_seqlens[s]; query < stream.cu_seqlens[s + 1]; ++query) {
      for (int64_t key = stream.cu_seqlens[s]; key <= query; ++key) {
        if (window == 0 || query - key < window) pairs[{query, key}] = 1;
      }
    }
  }
  return pairs;
}

std::vector<int64_t> BlockTokens(const Stream& stream, ContextMethod method, int ranks, int owner) {
  if (method == ContextMethod::kRing) return LocalTokens(stream.tokens(), stream.sequence_length, ranks, owner);
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const int64_t token : LocalTokens(stream.tokens(), stream.sequence_length, ranks, rank))
      tokens.push_back(token);
  }
  return tokens;
}

// The tokens a call's rows stand for.
std::vector<int64_t> TokensOf(const std::vector<int64_t>& index, const std::vector<int64_t>& all) {
  if (index.empty()) return all;
  std::vector<int64_t> tokens;
  for (const int64_t row : index) tokens.push_back(all.at(row));
  return tokens;
}

// Plays a call as kernels/attention/attention.h words it.
void Play(const AttentionCall& call, const std::vector<int64_t>& local, const std::vector<int64_t>& block,
          Pairs* pairs) {
  const std::vector<int64_t> queries = TokensOf(call.query_index, local), keys = TokensOf(call.key_index, block);
  ASSERT_EQ(call.cu_seqlens_q.size(), call.cu_seqlens_k.size());
  ASSERT_EQ(call.cu_seqlens_q.back(), static_cast<int32_t>(queries.size()));
  ASSERT_EQ(call.cu_seqlens_k.back(), static_cast<int32_t>(keys.size()));
  EXPECT_EQ(std::set<int64_t>(queries.begin(), queries.end()).size(), queries.size()) << "a query stands in it twice";
  std::map<int64_t, int> key_count;
  for (const int64_t key : keys) EXPECT_LE(++key_count[key], 2);
  int64_t max_q = 0, max_k = 0;
  for (size_t s = 0; s + 1 < call.cu_seqlens_q.size(); ++s) {
    const int64_t num_q = call.cu_seqlens_q[s + 1] - call.cu_seqlens_q[s];
    const int64_t num_k = call.cu_seqlens_k[s + 1] - call.cu_seqlens_k[s];
    max_q = std::max(max_q, num_q);
    max_k = std::max(max_k, num_k);
    const int64_t diagonal = call.diagonal.empty() ? num_k - num_q : call.diagonal.at(s);
    std::vector<bool> query_sees(num_q), key_seen(num_k);
    for (int64_t i = 0; i < num_q; ++i) {
      for (int64_t j = 0; j < num_k; ++j) {
        if (call.causal && j > i + diagonal) continue;
        if (call.window > 0 && j <= i + diagonal - call.window) continue;
        ++(*pairs)[{queries[call.cu_seqlens_q[s] + i], keys[call.cu_seqlens_k[s] + j]}];
        query_sees[i] = key_seen[j] = true;
      }
    }
    EXPECT_EQ(query_sees, std::vector<bool>(num_q, true)) << "segment " << s;
    EXPECT_EQ(key_seen, std::vector<bool>(num_k, true)) << "segment " << s;
  }
  EXPECT_EQ(call.max_q, max_q);
  EXPECT_EQ(call.max_k, max_k);
}

TEST(LocalTokens, EarlyAndLateChunksOfEverySequence) {
  EXPECT_EQ(LocalTokens(16, 8, 2, 0), (std::vector<int64_t>{0, 1, 6, 7, 8, 9, 14, 15}));
  EXPECT_EQ(LocalTokens(16, 8, 2, 1), (std::vector<int64_t>{2, 3, 4, 5, 10, 11, 12, 13}));
  EXPECT_EQ(LocalTokens(4, 4, 1, 0), (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(LocalTokens, EveryTokenHasOneRank) {
  std::set<int64_t> seen;
  for (int rank = 0; rank < 3; ++rank) {
    for (const int64_t token : LocalTokens(60, 12, 3, rank)) EXPECT_TRUE(seen.insert(token).second) << token;
  }
  EXPECT_EQ(seen.size(), 60u);
}

TEST(ContextPlan, EveryQueryMeetsEveryKeyItSeesOnce) {
  for (const ContextMethod method : {ContextMethod::kGather, ContextMethod::kRing}) {
    for (const int ranks : {1, 2, 3, 4}) {
      for (const double documents_per_token : {0.0, 0.03, 0.3, 1.0}) {
        const Stream stream = RandomStream(3, 48, documents_per_token, ranks);
        for (const int64_t window : {0, 1, 2, 5, 6, 7, 13, 20, 40, 47, 48, 100}) {
          SCOPED_TRACE(absl::StrCat(method == ContextMethod::kRing ? "ring" : "gather", ", ", ranks, " ranks, ",
                                    documents_per_token, " documents per token, window ", window));
          Pairs pairs;
          for (int rank = 0; rank < ranks; ++rank) {
            const ContextPlan plan =
                PlanContext(method, stream.cu_seqlens, stream.sequence_length, window, ranks, rank);
            const std::vector<int64_t> local = BlockTokens(stream, ContextMethod::kRing, ranks, rank);
            for (size_t owner = 0; owner < plan.blocks.size(); ++owner) {
              const std::vector<int64_t> block = BlockTokens(stream, method, ranks, static_cast<int>(owner));
              for (const AttentionCall& call : plan.blocks[owner]) Play(call, local, block, &pairs);
            }
          }
          ASSERT_TRUE(pairs == VisiblePairs(stream, window));
        }
      }
    }
  }
}

TEST(ContextPlan, GatherIsOneCallOnAllOwnQueries) {
  const Stream stream = RandomStream(2, 32, 0.1, 5);
  for (const int64_t window : {0, 3, 20}) {
    const ContextPlan plan = PlanContext(ContextMethod::kGather, stream.cu_seqlens, 32, window, 4, 2);
    ASSERT_EQ(plan.blocks.size(), 1u);
    ASSERT_EQ(plan.blocks[0].size(), 1u);
    EXPECT_TRUE(plan.blocks[0][0].query_index.empty());
    EXPECT_TRUE(plan.blocks[0][0].diagonal.empty());
  }
}

// What kernels without a `diagonal` can do.
TEST(ContextPlan, RingWithoutWindowIsOnePlainCallForEachBlock) {
  const Stream stream = RandomStream(2, 48, 0, 5);
  for (int rank = 0; rank < 4; ++rank) {
    const ContextPlan plan = PlanContext(ContextMethod::kRing, stream.cu_seqlens, 48, 0, 4, rank);
    ASSERT_EQ(plan.blocks.size(), 4u);
    for (int owner = 0; owner < 4; ++owner) {
      SCOPED_TRACE(absl::StrCat("rank ", rank, ", owner ", owner));
      ASSERT_EQ(plan.blocks[owner].size(), 1u);
      const AttentionCall& call = plan.blocks[owner][0];
      EXPECT_TRUE(call.diagonal.empty());
      EXPECT_EQ(call.window, 0);
      EXPECT_EQ(call.causal, owner == rank);
      // From earlier ranks the early chunks, for all queries; from later ranks everything, for the late ones.
      EXPECT_EQ(call.query_index.empty(), owner <= rank);
      EXPECT_EQ(call.key_index.empty(), owner > rank);
      // A segment for each sequence; on its own block one for each chunk.
      EXPECT_EQ(call.cu_seqlens_q.size(), owner == rank ? 5u : 3u);
    }
  }
}

// Blocks of which a rank sees nothing: documents that end with their chunk, windows that do not reach another's.
TEST(ContextPlan, EmptyCallsAreLeftOut) {
  const std::vector<int32_t> chunks = {0, 4, 8, 12, 16};
  for (int rank = 0; rank < 2; ++rank) {
    const ContextPlan plan = PlanContext(ContextMethod::kRing, chunks, 16, 0, 2, rank);
    EXPECT_EQ(plan.blocks[rank].size(), 1u);
    EXPECT_TRUE(plan.blocks[rank][0].key_index.empty());
    EXPECT_TRUE(plan.blocks[1 - rank].empty());
  }
  const ContextPlan plan = PlanContext(ContextMethod::kRing, {0, 16}, 16, /*window=*/1, 2, 0);
  EXPECT_EQ(plan.blocks[0].size(), 1u);
  EXPECT_TRUE(plan.blocks[1].empty());
}

TEST(ContextPlan, EmptySegmentsChangeNothing) {
  const ContextPlan plain = PlanContext(ContextMethod::kGather, {0, 5, 16, 32}, 16, 3, 2, 1);
  const ContextPlan padded = PlanContext(ContextMethod::kGather, {0, 5, 5, 16, 32, 32, 32}, 16, 3, 2, 1);
  EXPECT_EQ(plain.blocks[0][0].key_index, padded.blocks[0][0].key_index);
  EXPECT_EQ(plain.blocks[0][0].cu_seqlens_q, padded.blocks[0][0].cu_seqlens_q);
}

TEST(ContextPlan, EveryRankHasTheSameWork) {
  for (const ContextMethod method : {ContextMethod::kGather, ContextMethod::kRing}) {
    std::set<size_t> work;
    for (int rank = 0; rank < 4; ++rank) {
      const Stream stream = {32, {0, 32}};
      const ContextPlan plan = PlanContext(method, stream.cu_seqlens, 32, 0, 4, rank);
      Pairs pairs;
      for (size_t owner = 0; owner < plan.blocks.size(); ++owner) {
        for (const AttentionCall& call : plan.blocks[owner]) {
          Play(call, BlockTokens(stream, ContextMethod::kRing, 4, rank),
               BlockTokens(stream, method, 4, static_cast<int>(owner)), &pairs);
        }
      }
      work.insert(pairs.size());
    }
    EXPECT_EQ(work, std::set<size_t>{32 * 33 / 2 / 4});
  }
}

}  // namespace
}  // namespace trireme
