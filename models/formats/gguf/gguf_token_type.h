// models/formats/gguf/gguf_token_type.h
// What `tokenizer.ggml.token_type` says of each token: LLAMA_TOKEN_TYPE_* of llama.cpp, which are SentencePiece's
// numbers.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKEN_TYPE_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKEN_TYPE_H_

#include <cstdint>

#include "launch/base/status.h"

namespace trireme::gguf_token_type {

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

}  // namespace trireme::gguf_token_type

namespace trireme {

// The error of a tokenizer that a GGUF file cannot hold.
template <typename... Args>
absl::Status GgufTokenizerError(const Args&... args) {
  return Error(ExitCode::kData, "tokenizer for gguf: ", args...);
}

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKEN_TYPE_H_
