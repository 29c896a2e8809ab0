// data/chat/conversations.h
// Files of samples as sequences to fine-tune on: read, tokenized and packed into memory once, at the start.
#ifndef TRIREME_DATA_CHAT_CONVERSATIONS_H_
#define TRIREME_DATA_CHAT_CONVERSATIONS_H_

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "configs/run_config.pb.h"
#include "data/chat/sample_tokenizer.h"
#include "data/sampling/packed_sequences.h"
#include "launch/base/status.h"

namespace trireme {

// What became of the samples of one split.
struct SampleCounts {
  int64_t read = 0;               // samples of this split in the files
  int64_t empty = 0;              // dropped: nothing in them
  int64_t unlearned = 0;          // dropped: no token carries loss
  int64_t over_long = 0;          // more than sequence_length tokens; of these
  int64_t dropped_over_long = 0;  // dropped: by over_long: DROP, or because what was kept of them carries no loss
  int64_t kept = 0;               // read less dropped
  int64_t without_end = 0;        // kept, but the last learned token is not a special one: nothing teaches to stop
  int64_t dropped_tokens = 0;     // of dropped samples, and of what was cut off others
};

struct ConversationSplit {
  std::shared_ptr<const PackedSequences> sequences;  // null when nothing was kept
  SampleCounts counts;
  std::set<int32_t> ends;  // the tokens that end its turns and texts, and are learned there
};

struct ConversationSet {
  ConversationSplit train;
  ConversationSplit validation;
};

// What validation_fraction chooses samples by. kContent: copies of a sample that are written differently stay together.
// kLine: by the bytes of the line; for runs that began so.
enum class SplitBy { kContent, kLine };

// Reads config.path, and config.validation_path or else validation_fraction of the former. A pure function of files and
// settings. Refused: what a file or a sample is refused for (data/chat/conversation.h, data/chat/sample_tokenizer.h),
// and a training split in which no token carries loss (kData); settings out of range (kConfig). What is left out is
// counted.
absl::StatusOr<ConversationSet> OpenConversations(const ConversationData& config, int64_t sequence_length,
                                                  const SampleTokenizer& tokenizer,
                                                  SplitBy split_by = SplitBy::kContent);

// "120 samples in 14 sequences of 512 tokens (97.2 % full), 3456 of 6970 tokens trained; dropped: 2 too long".
std::string Describe(const ConversationSplit& split);

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_CONVERSATIONS_H_
