// data/tokenizer/sentencepiece_file.h
// Reading SentencePiece's model file (tokenizer.model), which may come from anyone.
#ifndef TRIREME_DATA_TOKENIZER_SENTENCEPIECE_FILE_H_
#define TRIREME_DATA_TOKENIZER_SENTENCEPIECE_FILE_H_

#include <absl/strings/string_view.h>

#include "data/tokenizer/bpe_file.h"
#include "data/tokenizer/tokenizer_folder.h"

namespace trireme {

// Whether `contents` begin as such a file does, which no JSON object does.
bool IsSentencePieceFile(absl::string_view contents);

// BPE models that normalize by white space alone, as those of Llama, Mistral and Gemma do; ids are those of the package
// `sentencepiece`: control tokens are not looked for in the text, user-defined ones are. Refuses (ExitCode::kData) what
// is malformed and what this program would not reproduce exactly, which includes unigram models and character maps
// (nmt_nfkc).
absl::StatusOr<BpeFile> ParseSentencePieceFile(absl::string_view contents);

// Parses the same file beside Transformers' files (`folder.exists`), whose LlamaTokenizer is followed then: tokens with
// a role and added ones are found in the text, and the space before a text comes at its very beginning only. Refused
// besides: added tokens of another class, and beside settings of the model that this class would not heed.
absl::StatusOr<BpeFile> ParseSentencePieceFile(absl::string_view contents, const TokenizerFolder& folder);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_SENTENCEPIECE_FILE_H_
