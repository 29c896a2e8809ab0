// data/tokenizer/bpe_trainer.h
// Learns a byte-level BPE vocabulary from text.
#ifndef TRIREME_DATA_TOKENIZER_BPE_TRAINER_H_
#define TRIREME_DATA_TOKENIZER_BPE_TRAINER_H_

#include <cstdint>
#include <functional>
#include <string>

#include "launch/base/status.h"

namespace trireme {

struct BpeTrainerOptions {
  int64_t vocab_size = 0;     // all tokens: the special one, 256 bytes, then merges; at least 257
  int64_t min_frequency = 2;  // a pair seen less often is not merged; the vocabulary then stays smaller
  std::string special_token = "<|endoftext|>";  // id 0, the end of a document
  int num_threads = 0;                          // that count words; 0: one per core
};

// Gives the next document; false at the end.
using DocumentSource = std::function<absl::StatusOr<bool>(std::string* document)>;

// Returns the contents of a tokenizer.json: GPT-2's splitting, byte-level, readable by the Hugging Face `tokenizers`
// package. The vocabulary depends on the texts and the options only, not on threads or the order of documents. Each
// step merges the pair seen most often; among equals the one with the smaller left id, then the smaller right id: the
// same vocabulary and merges as that package's BpeTrainer finds (with initial_alphabet = ByteLevel.alphabet()). Invalid
// UTF-8 is replaced as Tokenizer::Encode() does.
absl::StatusOr<std::string> TrainBpe(const DocumentSource& source, const BpeTrainerOptions& options);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_TRAINER_H_
