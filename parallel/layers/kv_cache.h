// parallel/layers/kv_cache.h
// Keys and values of earlier tokens, in pages of fixed size that a block table gives to sequences. Attention sees
// contiguous keys whatever the table says: pages that lie one after another are a view, others are gathered first. So
// every attention backend serves every table.
#ifndef TRIREME_PARALLEL_LAYERS_KV_CACHE_H_
#define TRIREME_PARALLEL_LAYERS_KV_CACHE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace trireme {

// The pages of each sequence, in the order of its tokens. No page stands twice.
using BlockTable = std::vector<std::vector<int32_t>>;

class KvCache {
 public:
  static constexpr int64_t kPageTokens = 16;

  // Pages of `page_tokens` tokens, as many per layer as the table's highest. The sequences are empty. `max_tokens`,
  // where it is given, holds for each sequence how many tokens it may have though its last page has room for more: a
  // model's positions need not fill whole pages.
  KvCache(BlockTable table, int64_t page_tokens, at::Device device, const std::vector<int64_t>& max_tokens = {});
  // The trivial table: one sequence of up to `max_tokens`, exactly, in pages 0, 1, ...
  static KvCache Contiguous(int64_t max_tokens, at::Device device);

  int64_t num_sequences() const { return static_cast<int64_t>(table_.size()); }
  int64_t length(int64_t sequence) const { return lengths_[sequence]; }
  int64_t capacity(int64_t sequence) const { return capacities_[sequence]; }  // tokens

  // Starts a pass through all layers over counts[s] >= 0 new tokens of each sequence, laid one after another, then
  // `padding` tokens that see nothing and are not kept. CHECKs that they fit. From now on length() counts them.
  void Begin(const std::vector<int64_t>& counts, int64_t padding);
  // Segments of the pass's tokens, the padding being one: [segments + 1] int32.
  const at::Tensor& cu_seqlens() const { return cu_seqlens_q_; }
  int64_t max_new_tokens() const { return max_q_; }

  // The pages of one layer, allocated when first used.
  class Layer {
   public:
    // Keeps k and v, then attends each new token to all tokens of its sequence up to itself. `arguments` holds q, k and
    // v of the pass's new tokens, k rotated, and window, scale and softcap. There is no gradient. Called once per pass.
    AttentionOutput Attend(const AttentionBackend& backend, const AttentionArguments& arguments);

   private:
    friend class KvCache;
    at::Tensor KeepAndCollect(at::Tensor& pages, const at::Tensor& fresh) const;

    const KvCache* cache_ = nullptr;
    at::Tensor keys_, values_;  // [pages, page_tokens, kv_heads, head_dim]
  };
  Layer& layer(const std::string& name);

 private:
  BlockTable table_;
  int64_t page_tokens_, num_pages_ = 0;
  at::Device device_;
  std::vector<int64_t> lengths_, capacities_;  // tokens, of each sequence
  std::map<std::string, Layer> layers_;
  // These belong to the pass. A slot is page x page_tokens + token in the page.
  at::Tensor write_slots_;                   // [new tokens] int64
  at::Tensor read_slots_;                    // [all tokens] int64; undefined where they are consecutive
  int64_t first_slot_ = 0, num_tokens_ = 0;  // of all tokens
  at::Tensor cu_seqlens_q_, cu_seqlens_k_;   // [segments + 1] int32
  int64_t max_q_ = 0, max_k_ = 0;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_KV_CACHE_H_
