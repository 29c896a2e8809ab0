// data/chat/content_hash.h
// By what copies of a sample are known.
#ifndef TRIREME_DATA_CHAT_CONTENT_HASH_H_
#define TRIREME_DATA_CHAT_CONTENT_HASH_H_

#include <string>

#include "data/chat/conversation.h"

namespace trireme {

// A digest of what is said in the sample: roles, contents, reasoning, names and arguments of called tools; or the text.
// It is the same for copies that are written otherwise (other order of keys, white space of JSON, escapes, another
// form) or have other numbers, names of data sets and the like beside it.
std::string ContentHash(const ConversationSample& sample);

}  // namespace trireme

#endif  // TRIREME_DATA_CHAT_CONTENT_HASH_H_
