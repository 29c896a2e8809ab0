// models/source/end_ids.h
// Where a model stops: the one answer that exports and `generate` give.
#ifndef TRIREME_MODELS_SOURCE_END_IDS_H_
#define TRIREME_MODELS_SOURCE_END_IDS_H_

#include <cstdint>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/tokenizer/tokenizer.h"
#include "models/source/model_source.h"

namespace trireme {

// The tokens that end what the model says, each once, in this order: those of config.json or the GGUF file, of
// generation_config.json, eos_token of the tokenizer's files, and what training taught. `turns`: a template whose ends
// of turns count too; null: none. Where nothing says anything it is what stands between documents. Ids outside the
// vocabulary, which stand for "none", are left out. `tokenizer` is the source's; null: it cannot be read.
std::vector<int64_t> EndIds(const ModelSource& source, const Tokenizer* tokenizer, const ChatTemplate* turns);

// The tokens that end the assistant's turn as the template writes it; empty where it ends without a special token.
std::vector<int64_t> TurnEndIds(const ChatTemplate& chat_template, const Tokenizer& tokenizer);

}  // namespace trireme

#endif  // TRIREME_MODELS_SOURCE_END_IDS_H_
