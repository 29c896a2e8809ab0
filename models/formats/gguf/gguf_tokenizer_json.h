// A tokenizer.json from the metadata of a GGUF file: the inverse of gguf_tokenizer.h.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_JSON_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_JSON_H_

#include <string>

#include "models/formats/gguf/gguf.h"

namespace trireme {

// Byte-level BPE (tokenizer.ggml.model "gpt2"), with the splitting rules that llama.cpp knows by the file's
// tokenizer.ggml.pre (gguf_splits.h), and SentencePiece's BPE ("llama"). kData for others, and for what is missing or
// contradicts itself.
absl::StatusOr<std::string> TokenizerJsonOfGguf(const GgufFile& file);

// "gpt2/smollm, 49152 tokens, 48900 merges, chat template"; "none" when there is no tokenizer.
std::string DescribeGgufTokenizer(const GgufFile& file);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_JSON_H_
