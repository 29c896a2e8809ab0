#include "parallel/layers/kv_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "launch/base/status.h"

namespace trireme {
namespace {

template <typename T>
at::Tensor CopyOf(const std::vector<T>& values, at::Device device) {
  at::Tensor tensor =
      at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  std::copy(values.begin(), values.end(), tensor.template mutable_data_ptr<T>());
  return tensor.to(device);
}

bool Consecutive(const std::vector<int64_t>& slots) {
  for (size_t i = 1; i < slots.size(); ++i) {
    if (slots[i] != slots[i - 1] + 1) return false;
  }
  return true;
}

}  // namespace

KvCache::KvCache(BlockTable table, int64_t page_tokens, at::Device device, const std::vector<int64_t>& max_tokens)
    : table_(std::move(table)), page_tokens_(page_tokens), device_(device), lengths_(table_.size(), 0) {
  TRIREME_CHECK(max_tokens.empty() || max_tokens.size() == table_.size(), max_tokens.size(), " limits for ",
                table_.size(), " sequences");
  for (size_t s = 0; s < table_.size(); ++s) {
    const int64_t room = static_cast<int64_t>(table_[s].size()) * page_tokens_;
    capacities_.push_back(max_tokens.empty() ? room : std::min(room, max_tokens[s]));
  }
  std::vector<bool> taken;
  for (const std::vector<int32_t>& pages : table_) {
    for (const int32_t page : pages) {
      num_pages_ = std::max<int64_t>(num_pages_, page + 1);
      taken.resize(num_pages_, false);
      TRIREME_CHECK(!taken[page], "page ", page, " stands twice in the block table");
      taken[page] = true;
    }
  }
}

KvCache KvCache::Contiguous(int64_t max_tokens, at::Device device) {
  std::vector<int32_t> pages((max_tokens + kPageTokens - 1) / kPageTokens);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  return KvCache({std::move(pages)}, kPageTokens, device, {max_tokens});
}

void KvCache::Begin(const std::vector<int64_t>& counts, int64_t padding) {
  TRIREME_CHECK(counts.size() == table_.size(), counts.size(), " counts for ", table_.size(), " sequences");
  std::vector<int64_t> write, read;
  std::vector<int32_t> ends_q = {0}, ends_k = {0};
  max_q_ = std::max<int64_t>(padding, 1);
  max_k_ = 1;
  for (size_t s = 0; s < counts.size(); ++s) {
    const int64_t before = lengths_[s], after = before + counts[s];
    TRIREME_CHECK(after <= capacities_[s], "sequence ", s, " has room for ", capacities_[s], " tokens, not for ",
                  after);
    for (int64_t token = 0; token < after; ++token) {
      const int64_t slot = table_[s][token / page_tokens_] * page_tokens_ + token % page_tokens_;
      read.push_back(slot);
      if (token >= before) write.push_back(slot);
    }
    lengths_[s] = after;
    ends_q.push_back(static_cast<int32_t>(write.size()));
    ends_k.push_back(static_cast<int32_t>(read.size()));
    max_q_ = std::max(max_q_, counts[s]);
    max_k_ = std::max(max_k_, after);
  }
  if (padding > 0) {
    ends_q.push_back(ends_q.back() + static_cast<int32_t>(padding));
    ends_k.push_back(ends_k.back());
  }
  write_slots_ = CopyOf(write, device_);
  first_slot_ = read.empty() ? 0 : read[0];
  num_tokens_ = static_cast<int64_t>(read.size());
  read_slots_ = Consecutive(read) ? at::Tensor() : CopyOf(read, device_);
  cu_seqlens_q_ = CopyOf(ends_q, device_);
  cu_seqlens_k_ = CopyOf(ends_k, device_);
}

KvCache::Layer& KvCache::layer(const std::string& name) {
  Layer& layer = layers_[name];
  layer.cache_ = this;
  return layer;
}

at::Tensor KvCache::Layer::KeepAndCollect(at::Tensor& pages, const at::Tensor& fresh) const {
  const KvCache& cache = *cache_;
  if (!pages.defined()) {
    pages = at::empty({cache.num_pages_, cache.page_tokens_, fresh.size(1), fresh.size(2)}, fresh.options());
  }
  at::Tensor slots = pages.view({cache.num_pages_ * cache.page_tokens_, fresh.size(1), fresh.size(2)});
  slots.index_copy_(0, cache.write_slots_, fresh.narrow(0, 0, cache.write_slots_.size(0)));
  return cache.read_slots_.defined() ? slots.index_select(0, cache.read_slots_)
                                     : slots.narrow(0, cache.first_slot_, cache.num_tokens_);
}

AttentionOutput KvCache::Layer::Attend(const AttentionBackend& backend, const AttentionArguments& fresh) {
  AttentionArguments arguments = fresh;
  arguments.k = KeepAndCollect(keys_, fresh.k);
  arguments.v = KeepAndCollect(values_, fresh.v);
  arguments.cu_seqlens_q = cache_->cu_seqlens_q_;
  arguments.cu_seqlens_k = cache_->cu_seqlens_k_;
  arguments.max_q = cache_->max_q_;
  arguments.max_k = cache_->max_k_;
  return backend.forward(arguments);
}

}  // namespace trireme
