// parallel/layers/context_split.h
// Context parallelism: which tokens of the stream a rank holds, and which attention calls the ranks make so that every
// query meets every key it sees exactly once. Index arithmetic only.
#ifndef TRIREME_PARALLEL_LAYERS_CONTEXT_SPLIT_H_
#define TRIREME_PARALLEL_LAYERS_CONTEXT_SPLIT_H_

#include <cstdint>
#include <vector>

namespace trireme {

// A stream of T tokens is sequences of equal length, each cut into 2 x ranks equal chunks. Rank r holds, sequence by
// sequence, chunk r and then chunk 2 x ranks - 1 - r: under a causal mask early chunks see little and late ones much,
// so that every rank computes the same. Its row i is token LocalTokens(...)[i] of the stream; there are T / ranks of
// them.
std::vector<int64_t> LocalTokens(int64_t total_tokens, int64_t sequence_length, int ranks, int rank);

enum class ContextMethod {
  kGather,  // every rank gets all keys and values
  kRing,    // they pass from rank to rank, one rank's at a time (arXiv 2310.01889)
};

// One call of an attention backend on some of this rank's queries and some rows of a block of keys. Segments, mask and
// sizes are as in kernels/attention/attention.h. No query stands in it twice, every query sees a key and every key is
// seen.
struct AttentionCall {
  std::vector<int64_t> query_index;  // rows of this rank; empty: all of them, in order
  std::vector<int64_t> key_index;  // rows of the block; empty: all of them, in order. A key stands in it at most twice.
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k;
  std::vector<int32_t> diagonal;  // [segments]; empty: bottom-right
  int64_t max_q = 0, max_k = 0;
  bool causal = true;
  int64_t window = 0;
};

// What one rank calls for one microbatch. The blocks of keys: for kGather a single one, all ranks' rows in rank order
// [T], in one call; for kRing, block o is what rank o holds [T / ranks]. The first call on a rank's own block (kGather:
// on the only one) covers all its queries.
struct ContextPlan {
  ContextMethod method = ContextMethod::kGather;
  std::vector<std::vector<AttentionCall>> blocks;
};

// cu_seqlens: from 0 to T, as the loader makes them (each segment within one sequence); empty segments are allowed.
// window: keys a query sees, itself included; 0: all. Without a window a ring makes one call on each block, none with a
// diagonal; a window that cuts through another rank's chunk needs calls with one.
ContextPlan PlanContext(ContextMethod method, const std::vector<int32_t>& cu_seqlens, int64_t sequence_length,
                        int64_t window, int ranks, int rank);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_CONTEXT_SPLIT_H_
