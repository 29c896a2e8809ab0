#include "parallel/layers/context_split.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "launch/base/status.h"

namespace trireme {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Where tokens of the stream lie.
struct Layout {
  int64_t total_tokens, sequence_length, chunk;
  int ranks;

  Layout(int64_t total_tokens, int64_t sequence_length, int ranks)
      : total_tokens(total_tokens),
        sequence_length(sequence_length),
        chunk(sequence_length / (2 * ranks)),
        ranks(ranks) {
    TRIREME_CHECK(sequence_length > 0 && sequence_length % (2 * ranks) == 0 && total_tokens % sequence_length == 0,
                  total_tokens, " tokens in sequences of ", sequence_length, " do not divide over ", ranks,
                  " context ranks");
  }
  int64_t local_tokens() const { return total_tokens / ranks; }
  // The chunks of a sequence that `rank` holds.
  std::array<int64_t, 2> Chunks(int rank) const { return {rank, 2 * ranks - 1 - rank}; }
  int Owner(int64_t token) const {
    const int64_t number = token % sequence_length / chunk;
    return static_cast<int>(number < ranks ? number : 2 * ranks - 1 - number);
  }
  // The row of a token within its owner's.
  int64_t Row(int64_t token) const {
    const bool tail = token % sequence_length / chunk >= ranks;
    return token / sequence_length * 2 * chunk + (tail ? chunk : 0) + token % chunk;
  }
  Range Rows(Range tokens) const { return {Row(tokens.begin), Row(tokens.begin) + tokens.size()}; }
  // The part of a document, which lies within a sequence, that chunk `number` of that sequence has; may be empty.
  Range Piece(Range document, int64_t number) const {
    const int64_t begin = document.begin / sequence_length * sequence_length + number * chunk;
    const Range piece = {std::max(begin, document.begin), std::min(begin + chunk, document.end)};
    return {piece.begin, std::max(piece.begin, piece.end)};
  }
};

std::vector<Range> Documents(const std::vector<int32_t>& cu_seqlens, int64_t sequence_length) {
  std::vector<Range> documents;
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const Range document = {cu_seqlens[i], cu_seqlens[i + 1]};
    if (document.size() == 0) continue;
    TRIREME_CHECK(document.begin / sequence_length == (document.end - 1) / sequence_length, "the segment of tokens ",
                  document.begin, " to ", document.end, " crosses sequences of ", sequence_length);
    documents.push_back(document);
  }
  return documents;
}

// Puts segments behind each other.
class CallBuilder {
 public:
  CallBuilder(bool causal, int64_t window, bool with_diagonal) : with_diagonal_(with_diagonal) {
    call_.causal = causal;
    call_.window = window;
    call_.cu_seqlens_q = call_.cu_seqlens_k = {0};
  }

  // queries, keys: rows; diagonal: as in kernels/attention/attention.h.
  void Add(Range queries, const std::vector<Range>& keys, int64_t diagonal = 0) {
    Append(queries, &call_.query_index);
    // A document's queries in both of a rank's chunks that see the same keys whole are one segment.
    if (!call_.causal && keys == last_keys_) {
      call_.cu_seqlens_q.pop_back();
      call_.cu_seqlens_k.pop_back();
    } else {
      for (const Range& range : keys) Append(range, &call_.key_index);
      if (with_diagonal_) call_.diagonal.push_back(static_cast<int32_t>(diagonal));
    }
    Close(call_.query_index, &call_.cu_seqlens_q, &call_.max_q);
    Close(call_.key_index, &call_.cu_seqlens_k, &call_.max_k);
    last_keys_ = keys;
  }

  void Finish(int64_t query_rows, int64_t key_rows, std::vector<AttentionCall>* calls) {
    if (call_.query_index.empty()) return;
    ClearIfAll(query_rows, &call_.query_index);
    ClearIfAll(key_rows, &call_.key_index);
    calls->push_back(std::move(call_));
  }

 private:
  static void Append(Range range, std::vector<int64_t>* index) {
    for (int64_t i = range.begin; i < range.end; ++i) index->push_back(i);
  }
  static void Close(const std::vector<int64_t>& index, std::vector<int32_t>* cu_seqlens, int64_t* longest) {
    const int32_t end = static_cast<int32_t>(index.size());
    *longest = std::max<int64_t>(*longest, end - cu_seqlens->back());
    cu_seqlens->push_back(end);
  }
  static void ClearIfAll(int64_t rows, std::vector<int64_t>* index) {
    std::vector<int64_t> all(rows);
    std::iota(all.begin(), all.end(), 0);
    if (*index == all) index->clear();
  }

  const bool with_diagonal_;
  AttentionCall call_;
  std::vector<Range> last_keys_;
};

// All keys at once: those that a piece of queries sees end with its last query, so the mask is bottom-right aligned.
std::vector<AttentionCall> GatherCalls(const Layout& layout, const std::vector<Range>& documents, int64_t window,
                                       int rank) {
  CallBuilder call(/*causal=*/true, window, /*with_diagonal=*/false);
  for (const Range& document : documents) {
    for (const int64_t number : layout.Chunks(rank)) {
      const Range queries = layout.Piece(document, number);
      if (queries.size() == 0) continue;
      const int64_t first = window > 0 ? std::max(document.begin, queries.begin + 1 - window) : document.begin;
      std::vector<Range> keys;
      for (int64_t begin = first, end; begin < queries.end; begin = end) {
        end = std::min((begin / layout.chunk + 1) * layout.chunk, queries.end);
        const int64_t row = layout.Owner(begin) * layout.local_tokens() + layout.Row(begin);
        keys.push_back({row, row + end - begin});
      }
      call.Add(layout.Rows(queries), keys);
    }
  }
  std::vector<AttentionCall> calls;
  call.Finish(layout.local_tokens(), layout.total_tokens, &calls);
  return calls;
}

// The keys of one owner. What a window does not cut needs no position: whole chunks seen by whole pieces, and the chunk
// that queries share with their keys as the last. A piece that it cuts is a segment of its own, of the keys and queries
// that meet.
std::vector<AttentionCall> RingCalls(const Layout& layout, const std::vector<Range>& documents, int64_t window,
                                     int rank, int owner) {
  CallBuilder aligned(/*causal=*/true, window, /*with_diagonal=*/false);
  CallBuilder whole(/*causal=*/false, /*window=*/0, /*with_diagonal=*/false);
  std::array<CallBuilder, 2> cut = {CallBuilder(/*causal=*/true, window, /*with_diagonal=*/true),
                                    CallBuilder(/*causal=*/true, window, /*with_diagonal=*/true)};  // by chunk of keys
  for (const Range& document : documents) {
    for (const int64_t number : layout.Chunks(rank)) {
      const Range queries = layout.Piece(document, number);
      if (queries.size() == 0) continue;
      std::vector<Range> uncut_keys;
      bool own_chunk = false;
      for (size_t half = 0; half < 2; ++half) {
        const int64_t key_number = layout.Chunks(owner)[half];
        Range keys = layout.Piece(document, key_number);
        if (keys.size() == 0 || key_number > number) continue;
        const bool same = key_number == number;
        if (window > 0 && !same && keys.begin < queries.end - window) {
          keys.begin = std::max(keys.begin, queries.begin + 1 - window);
          const int64_t end = std::min(queries.end, keys.end + window - 1);
          if (keys.size() <= 0) continue;
          cut[half].Add(layout.Rows({queries.begin, end}), {layout.Rows(keys)}, queries.begin - keys.begin);
        } else {
          uncut_keys.push_back(layout.Rows(keys));
          own_chunk = own_chunk || same;
        }
      }
      if (!uncut_keys.empty()) (own_chunk ? aligned : whole).Add(layout.Rows(queries), uncut_keys);
    }
  }
  std::vector<AttentionCall> calls;
  for (CallBuilder* call : {&aligned, &whole, &cut[0], &cut[1]})
    call->Finish(layout.local_tokens(), layout.local_tokens(), &calls);
  return calls;
}

}  // namespace

std::vector<int64_t> LocalTokens(int64_t total_tokens, int64_t sequence_length, int ranks, int rank) {
  const Layout layout(total_tokens, sequence_length, ranks);
  std::vector<int64_t> tokens;
  tokens.reserve(layout.local_tokens());
  for (int64_t sequence = 0; sequence < total_tokens; sequence += sequence_length) {
    for (const int64_t number : layout.Chunks(rank)) {
      for (int64_t i = 0; i < layout.chunk; ++i) tokens.push_back(sequence + number * layout.chunk + i);
    }
  }
  return tokens;
}

ContextPlan PlanContext(ContextMethod method, const std::vector<int32_t>& cu_seqlens, int64_t sequence_length,
                        int64_t window, int ranks, int rank) {
  TRIREME_CHECK(!cu_seqlens.empty() && rank >= 0 && rank < ranks && window >= 0);
  const Layout layout(cu_seqlens.back(), sequence_length, ranks);
  const std::vector<Range> documents = Documents(cu_seqlens, sequence_length);
  ContextPlan plan;
  plan.method = method;
  if (method == ContextMethod::kGather) {
    plan.blocks.push_back(GatherCalls(layout, documents, window, rank));
  } else {
    for (int owner = 0; owner < ranks; ++owner)
      plan.blocks.push_back(RingCalls(layout, documents, window, rank, owner));
  }
  return plan;
}

}  // namespace trireme
