#include "data/corpus/concatenated_stream.h"

#include <algorithm>
#include <utility>

namespace trireme {
namespace {

class ConcatenatedStream : public TokenStream {
 public:
  ConcatenatedStream(std::vector<std::shared_ptr<const TokenStream>> parts, std::string description)
      : description_(std::move(description)) {
    for (auto& part : parts) {
      num_documents_ += part->num_documents();
      if (part->num_tokens() == 0) continue;
      begins_.push_back(num_tokens_);
      num_tokens_ += part->num_tokens();
      parts_.push_back(std::move(part));
    }
  }

  int64_t num_tokens() const override { return num_tokens_; }
  int64_t num_documents() const override { return num_documents_; }
  std::string description() const override { return description_; }

  absl::Status Read(int64_t begin, int64_t count, int64_t* out) const override {
    TRIREME_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens_ - count);
    absl::Status status;
    ForEachPart(begin, count, [&](const TokenStream& part, int64_t local_begin, int64_t local_count, int64_t offset) {
      if (status.ok()) status = part.Read(local_begin, local_count, out + offset);
    });
    return status;
  }

  absl::Status DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const override {
    out->clear();
    std::vector<int32_t> local;
    absl::Status status;
    ForEachPart(begin, count, [&](const TokenStream& part, int64_t local_begin, int64_t local_count, int64_t offset) {
      if (offset > 0) out->push_back(static_cast<int32_t>(offset));
      if (status.ok()) status = part.DocumentStarts(local_begin, local_count, &local);
      for (const int32_t start : local) out->push_back(static_cast<int32_t>(start + offset));
    });
    return status;
  }

 private:
  // Calls visit(part, begin within it, count, offset from `begin`) for every part that overlaps [begin, begin + count),
  // in order.
  template <typename Visit>
  void ForEachPart(int64_t begin, int64_t count, const Visit& visit) const {
    int64_t offset = 0;
    size_t i = std::upper_bound(begins_.begin(), begins_.end(), begin) - begins_.begin() - 1;
    while (offset < count) {
      const int64_t local_begin = begin + offset - begins_[i];
      const int64_t local_count = std::min(count - offset, parts_[i]->num_tokens() - local_begin);
      visit(*parts_[i], local_begin, local_count, offset);
      offset += local_count;
      ++i;
    }
  }

  std::string description_;
  std::vector<std::shared_ptr<const TokenStream>> parts_;  // None is empty.
  std::vector<int64_t> begins_;                            // First token of each part.
  int64_t num_tokens_ = 0;
  int64_t num_documents_ = 0;
};

}  // namespace

std::shared_ptr<const TokenStream> Concatenate(std::vector<std::shared_ptr<const TokenStream>> parts,
                                               std::string description) {
  if (parts.size() == 1) return parts[0];
  return std::make_shared<ConcatenatedStream>(std::move(parts), std::move(description));
}

}  // namespace trireme
