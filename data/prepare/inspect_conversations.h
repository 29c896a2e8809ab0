// data/prepare/inspect_conversations.h
// What fine-tuning data comes to, for people.
#ifndef TRIREME_DATA_PREPARE_INSPECT_CONVERSATIONS_H_
#define TRIREME_DATA_PREPARE_INSPECT_CONVERSATIONS_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "data/chat/conversations.h"
#include "data/tokenizer/tokenizer.h"

namespace trireme {

struct InspectConversationsOptions {
  int64_t samples = 0;  // how many to show, in training order
  uint64_t seed = 1234;
  bool color = false;  // trained tokens in green; else between the marks kTrainedBegin and kTrainedEnd
};
inline constexpr char kTrainedBegin[] = "⟦", kTrainedEnd[] = "⟧";

// Counts of both splits, then samples of the training split, or the pieces of them that are kept.
void InspectConversations(const ConversationSet& set, const Tokenizer& tokenizer,
                          const InspectConversationsOptions& options, std::ostream& out);

}  // namespace trireme

#endif  // TRIREME_DATA_PREPARE_INSPECT_CONVERSATIONS_H_
