// data/tokenizer/bpe_word_counter.h
// Counts the pieces of many documents with several threads.
#ifndef TRIREME_DATA_TOKENIZER_BPE_WORD_COUNTER_H_
#define TRIREME_DATA_TOKENIZER_BPE_WORD_COUNTER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/tokenizer/bpe_trainer.h"

namespace trireme {

// Every piece that GPT-2's pattern cuts from the documents, with its count, sorted by piece. Reads `source` on the
// calling thread.
absl::StatusOr<std::vector<std::pair<std::string, int64_t>>> CountWords(const DocumentSource& source, int num_threads);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_WORD_COUNTER_H_
