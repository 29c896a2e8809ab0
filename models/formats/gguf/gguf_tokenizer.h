// models/formats/gguf/gguf_tokenizer.h
// A tokenizer as GGUF metadata, the only place llama.cpp takes it from.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer_folder.h"
#include "launch/base/status.h"
#include "models/formats/gguf/gguf.h"

namespace trireme {

// What tokenizer.json does not say.
struct GgufTokenizerOptions {
  int64_t vocab_size = 0;  // rows of the embedding; ids without a token become unused ones, "[PAD7]"
  std::optional<int32_t> bos_token_id, eos_token_id, pad_token_id;
  // Other tokens at which to stop. A file has room for two (llama.cpp's eot and eom); of more a warning says which.
  std::vector<int32_t> more_ends;
  bool add_bos_token = false;  // needs bos_token_id
  std::string chat_template;   // Jinja; empty: none
  TokenizerFolder folder;      // the files beside the tokenizer's
};

// Where tokens stand that end a text or a turn beside tokenizer.ggml.eos_token_id.
inline constexpr const char* kGgufMoreEnds[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};

struct GgufTokenizer {
  GgufMetadata metadata;              // tokenizer.*
  std::vector<std::string> warnings;  // where llama.cpp will give other ids than this program, for the user to read
};

// From the contents of a tokenizer.json or tokenizer.model, which data/tokenizer/tokenizer.h must accept. Errors: kData
// for the file, kConfig for options that contradict it. llama.cpp knows splitting rules by name only, so a byte-level
// file with rules that have no name there (gguf_splits.h) is refused. In SentencePiece's manner it spells spaces and
// nothing else.
absl::StatusOr<GgufTokenizer> MakeGgufTokenizer(absl::string_view contents, const GgufTokenizerOptions& options);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_H_
