#include "data/sampling/packed_sequences.h"

#include <limits>
#include <string>
#include <utility>

#include "data/sampling/packing.h"
#include "data/sampling/permutation.h"
#include "launch/base/file.h"

namespace trireme {
namespace {

class PackedSampler : public Sampler {
 public:
  PackedSampler(std::shared_ptr<const PackedSequences> sequences, uint64_t seed, bool shuffle)
      : sequences_(std::move(sequences)), seed_(seed), shuffle_(shuffle) {}

  absl::StatusOr<Sample> Get(int64_t index) const override {
    TRIREME_CHECK(index >= 0, "sample ", index);
    const int64_t count = sequences_->size(), epoch = index / count;
    int64_t window = index % count;
    if (shuffle_) window = Permutation(count, MixKeys({seed_, 0, static_cast<uint64_t>(epoch)}))(window);
    Sample sample = sequences_->Get(window);
    sample.epoch = epoch;
    return sample;
  }
  int64_t num_windows() const override { return sequences_->size(); }
  int64_t sequence_length() const override { return sequences_->sequence_length(); }

 private:
  const std::shared_ptr<const PackedSequences> sequences_;
  const uint64_t seed_;
  const bool shuffle_;
};

}  // namespace

void PackedSequences::Add(const int32_t* ids, const uint8_t* learned, int64_t count, int64_t sample) {
  TRIREME_CHECK(count > 0 && count <= sequence_length_, "a document of ", count, " tokens");
  TRIREME_CHECK(documents_.size() < std::numeric_limits<int32_t>::max());
  documents_.push_back({num_tokens(), static_cast<int32_t>(count), sample});
  ids_.insert(ids_.end(), ids, ids + count);
  learned_.push_back(0);  // Nothing comes before it that could predict it.
  for (int64_t i = 1; i < count; ++i) {
    learned_.push_back(learned[i] != 0 ? 1 : 0);
    num_targets_ += learned_.back();
  }
}

void PackedSequences::Pack(ConversationData::Packing packing) {
  TRIREME_CHECK(sequences_.empty());
  std::vector<int32_t> lengths;
  for (const PackedDocument& document : documents_) lengths.push_back(document.length);
  if (packing == ConversationData::BEST_FIT) {
    sequences_ = PackBestFit(lengths, static_cast<int32_t>(sequence_length_));
    return;
  }
  for (size_t i = 0; i < lengths.size(); ++i) sequences_.push_back({static_cast<int32_t>(i)});
}

std::vector<PackedDocument> PackedSequences::Documents(int64_t sequence) const {
  std::vector<PackedDocument> documents;
  for (const int32_t index : sequences_[sequence]) documents.push_back(documents_[index]);
  return documents;
}

Sample PackedSequences::Get(int64_t sequence) const {
  Sample sample;
  sample.window = sequence;
  sample.tokens.reserve(sequence_length_ + 1);
  sample.targets.reserve(sequence_length_);
  for (const PackedDocument& document : Documents(sequence)) {
    if (!sample.tokens.empty()) sample.document_starts.push_back(static_cast<int32_t>(sample.tokens.size()));
    for (int64_t i = document.begin; i < document.begin + document.length; ++i) {
      sample.tokens.push_back(ids_[i]);
      const bool last = i + 1 == document.begin + document.length;
      sample.targets.push_back(!last && learned(i + 1) ? ids_[i + 1] : kIgnoredTarget);
    }
  }
  sample.filling = sequence_length_ - static_cast<int64_t>(sample.tokens.size());
  if (sample.filling > 0) sample.document_starts.push_back(static_cast<int32_t>(sample.tokens.size()));
  sample.tokens.resize(sequence_length_ + 1, padding_id_);
  sample.targets.resize(sequence_length_, kIgnoredTarget);
  return sample;
}

std::string PackedSequences::Digest() const {
  std::vector<int64_t> layout = {sequence_length_, padding_id_};
  for (const std::vector<int32_t>& sequence : sequences_) {
    layout.push_back(static_cast<int64_t>(sequence.size()));
    for (const int32_t index : sequence)
      layout.insert(layout.end(), {documents_[index].begin, documents_[index].length});
  }
  const std::string parts = absl::StrCat(HashBytes(ids_.data(), ids_.size() * sizeof(ids_[0])), " ",
                                         HashBytes(learned_.data(), learned_.size()), " ",
                                         HashBytes(layout.data(), layout.size() * sizeof(layout[0])));
  return HashBytes(parts.data(), parts.size());
}

std::shared_ptr<const Sampler> MakePackedSampler(std::shared_ptr<const PackedSequences> sequences, uint64_t seed,
                                                 bool shuffle) {
  TRIREME_CHECK(sequences->size() > 0);
  return std::make_shared<const PackedSampler>(std::move(sequences), seed, shuffle);
}

}  // namespace trireme
