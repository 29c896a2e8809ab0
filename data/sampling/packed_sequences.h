// data/sampling/packed_sequences.h
// Documents of tokens and masks, packed into sequences of one length.
#ifndef TRIREME_DATA_SAMPLING_PACKED_SEQUENCES_H_
#define TRIREME_DATA_SAMPLING_PACKED_SEQUENCES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "configs/run_config.pb.h"
#include "data/sampling/sampler.h"

namespace trireme {

// A part of a sample, or the whole.
struct PackedDocument {
  int64_t begin = 0;   // in the tokens of all documents
  int32_t length = 0;  // tokens
  int64_t sample = 0;  // number of the sample in its files, from 0
};

// Kept in memory. Immutable once packed, and then thread-safe.
class PackedSequences {
 public:
  PackedSequences(int64_t sequence_length, int32_t padding_id)
      : sequence_length_(sequence_length), padding_id_(padding_id) {}

  // Adds a document of at most sequence_length tokens. learned[i]: token i carries loss where it is the target.
  void Add(const int32_t* ids, const uint8_t* learned, int64_t count, int64_t sample);
  // Fills the sequences; call once, when all are added.
  void Pack(ConversationData::Packing packing);

  int64_t size() const { return static_cast<int64_t>(sequences_.size()); }
  int64_t sequence_length() const { return sequence_length_; }
  int64_t num_documents() const { return static_cast<int64_t>(documents_.size()); }
  int64_t num_tokens() const { return static_cast<int64_t>(ids_.size()); }  // without padding
  int64_t num_targets() const { return num_targets_; }                      // that carry loss

  // Documents one after another, positions and attention apart; the rest is padding: a document without targets.
  Sample Get(int64_t sequence) const;
  std::vector<PackedDocument> Documents(int64_t sequence) const;
  int32_t id(int64_t token) const { return ids_[token]; }
  // Whether the token is a target with loss: the first of a document never is.
  bool learned(int64_t token) const { return learned_[token] != 0; }

  std::string Digest() const;  // of all that Get() can give

 private:
  const int64_t sequence_length_;
  const int32_t padding_id_;
  std::vector<int32_t> ids_;      // of all documents
  std::vector<uint8_t> learned_;  // [ids_]
  std::vector<PackedDocument> documents_;
  std::vector<std::vector<int32_t>> sequences_;  // indices of documents
  int64_t num_targets_ = 0;
};

// Epoch after epoch, each in another order where `shuffle`, as Sampler::Create() has it. `sequences` must not be empty.
std::shared_ptr<const Sampler> MakePackedSampler(std::shared_ptr<const PackedSequences> sequences, uint64_t seed,
                                                 bool shuffle);

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_PACKED_SEQUENCES_H_
